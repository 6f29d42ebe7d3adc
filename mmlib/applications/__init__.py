"""Four small systems on the models of the chapters before: chapter 14.

* :mod:`mmlib.applications.assistant` answers questions from a knowledge base, or says that it does
  not know;
* :mod:`mmlib.applications.replies` picks a reply for a line of talk, in English and Chinese;
* :mod:`mmlib.applications.monitor` watches the mood of a stream of posts and raises an alarm;
* :mod:`mmlib.applications.recommender` says what a person may click next;
* :mod:`mmlib.applications.summary` picks the sentences and pictures that tell most.

The encoders stand still everywhere: what is trained are small heads on their vectors.
"""

"""A service of what the chapters trained: over HTTP, and as a page in the browser: chapter 15.

``python -m mmlib.serving`` starts it on this machine. One idea a file:

* :mod:`~mmlib.serving.functions`: what a function of the service is;
  :mod:`~mmlib.serving.image_search`, :mod:`~mmlib.serving.scene_caption`,
  :mod:`~mmlib.serving.scene_questions` and :mod:`~mmlib.serving.scene_painting` are the four;
* :mod:`~mmlib.serving.uploads`: from the bytes of an upload to a picture, or a refusal;
* :mod:`~mmlib.serving.batching`: requests that come one by one, answered in batches;
* :mod:`~mmlib.serving.guard`: who may ask, how much, and how slowly;
* :mod:`~mmlib.serving.problems`: what an error looks like;
* :mod:`~mmlib.serving.watching`: metrics, and a line of JSON for each request;
* :mod:`~mmlib.serving.app`: all of it together; :mod:`~mmlib.serving.page`: the page;
* :mod:`~mmlib.serving.settings`: the limits.
"""

"""The full system: CLIP, a tokenizer of pictures, and one language model over both: chapter 16.

``python -m mmlib.system train --profile smoke --out RUN`` trains it; ``evaluate RUN``,
``chat RUN`` and ``serve RUN`` use it. In the order in which one reads them:

- :mod:`~mmlib.system.words`: English and Chinese in one vocabulary, and the markers;
- :mod:`~mmlib.system.sequence`: documents of words, regions and codes, and rows of them;
- :mod:`~mmlib.system.model`: the language model and its loss;
- :mod:`~mmlib.system.smollm`: a pretrained language model in its place;
- :mod:`~mmlib.system.writing`: what it writes and draws;
- :mod:`~mmlib.system.pictures`: how pictures are looked at and painted;
- :mod:`~mmlib.system.tasks`, :mod:`~mmlib.system.requests`, :mod:`~mmlib.system.photos`,
  :mod:`~mmlib.system.material` and :mod:`~mmlib.system.lessons`: what it learns;
- :mod:`~mmlib.system.profiles`: sizes, for a CPU and for GPUs;
- :mod:`~mmlib.system.faster`: what makes large runs faster or smaller;
- :mod:`~mmlib.system.stages`: the four stages of training;
- :mod:`~mmlib.system.answers`: what it answers, and which of its drawings is shown;
- :mod:`~mmlib.system.marking` and :mod:`~mmlib.system.samples`: what it has learned;
- :mod:`~mmlib.system.board`: how a run goes, for TensorBoard;
- :mod:`~mmlib.system.commands` and :mod:`~mmlib.system.serving`: the commands, and the service.
"""

"""mmlib: the library behind *Multimodal Large Language Models from Scratch*.

Each chapter of the book has a module of the same name here. Importing the package loads none of
them, so that ``import mmlib`` is quick::

    import mmlib
    from mmlib.attention import MultiHeadAttention
"""

from mmlib.notebook import require, show

__all__ = ["__version__", "require", "show"]
__version__ = "0.9.0"

"""The one place that talks to espeak-ng: text in, samples and events out, through ctypes.

Three habits of the library shape this file.

* It keeps state from one utterance to the next (the flutter of the pitch, a gain that recovers
  slowly, a cycle counter), which no function resets and which changes the next utterance. So it is
  loaded afresh for each call and unloaded after it, which costs about 0.3 ms.
* It changes the process's locale, and leaves it changed. Here it is put back.
* It holds the path of its data in 160 bytes. A longer path goes through a link with a short name.
"""

from __future__ import annotations

import ctypes
import locale
import os
import platform
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

# speak_lib.h
_SYNCHRONOUS, _UTF8, _BY_CHARACTER = 2, 1, 1
_PHONEME_EVENTS, _IN_IPA, _DO_NOT_EXIT = 1, 2, 0x8000
_RATE, _PITCH, _RANGE = 1, 3, 4
_WORD, _PHONEME = 1, 7
_LONGEST_PATH = 140  # of the 160 bytes, some are for the names of files


class _Id(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _Id),
    ]


_Callback = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event)
)
_PROTOTYPES = {
    "espeak_Initialize": (ctypes.c_int, [ctypes.c_int] * 2 + [ctypes.c_char_p, ctypes.c_int]),
    "espeak_SetSynthCallback": (None, [_Callback]),
    "espeak_SetVoiceByName": (ctypes.c_int, [ctypes.c_char_p]),
    "espeak_SetParameter": (ctypes.c_int, [ctypes.c_int] * 3),
    "espeak_ng_SetRandSeed": (ctypes.c_int, [ctypes.c_long]),
    "espeak_Synth": (
        ctypes.c_int,
        [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint, ctypes.c_int, ctypes.c_uint]
        + [ctypes.c_uint, ctypes.POINTER(ctypes.c_uint), ctypes.c_void_p],
    ),
    "espeak_Info": (ctypes.c_char_p, [ctypes.c_void_p]),
    "espeak_Terminate": (ctypes.c_int, []),
}

_lock = threading.Lock()
if hasattr(os, "register_at_fork"):
    # A child process forked while another thread speaks would wait for that thread for ever.
    os.register_at_fork(
        before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release
    )


class Event(NamedTuple):
    """Something that begins at a sample: a word, a speech sound, or neither (a pause).

    Attributes:
        kind: ``"word"``, ``"sound"`` or ``"other"``.
        sample: where, at the library's own sampling rate.
        position: of a word: the index of its first character in the text.
        symbol: of a sound: its IPA symbol.
    """

    kind: str
    sample: int
    position: int
    symbol: str


def speak(
    text: str, voice: str, rate: int, pitch: int, pitch_range: int
) -> tuple[np.ndarray, int, list[Event]]:
    """Say a text.

    Args:
        text: anything; nothing in it is read as markup.
        voice: a name that espeak-ng knows, ``language+variant``.
        rate: words a minute.
        pitch: 0 to 99.
        pitch_range: 0 to 99.

    Returns:
        Samples (int16), the sampling rate, and the events in order.

    Raises:
        ImportError: if ``espeakng-loader`` is missing, or has no library for this machine.
        OSError: if the library cannot read its data.
    """
    chunks: list[np.ndarray] = []
    events: list[Event] = []

    @_Callback
    def receive(samples, count, happened):
        if count > 0:
            chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        at = 0
        while happened[at].type:  # a list ends with type 0
            events.append(_read(happened[at]))
            at += 1
        return 0  # go on

    data = text.encode("utf-8") + b"\0"
    with _library() as (library, sampling_rate):
        if library.espeak_SetVoiceByName(voice.encode()):
            raise OSError(f"espeak-ng cannot find voice {voice!r} in its data at {_data_folder()}")
        library.espeak_ng_SetRandSeed(1)  # breath is noise
        library.espeak_SetSynthCallback(receive)
        for parameter, value in ((_RATE, rate), (_PITCH, pitch), (_RANGE, pitch_range)):
            library.espeak_SetParameter(parameter, value, 0)
        status = library.espeak_Synth(data, len(data), 0, _BY_CHARACTER, 0, _UTF8, None, None)
        if status:
            raise OSError(f"espeak-ng failed with status {status} on {text!r}")
    samples = np.concatenate(chunks) if chunks else np.zeros(0, np.int16)
    return samples, sampling_rate, events


def version() -> str:
    """The version of espeak-ng, such as ``"1.52.0"``.

    Raises:
        ImportError: if ``espeakng-loader`` is missing, or has no library for this machine.
    """
    with _library() as (library, _):
        return library.espeak_Info(None).decode()


def _read(event: _Event) -> Event:
    """Copy an event out of memory that the library will use again."""
    kind, symbol = "other", ""
    if event.type == _WORD:
        kind = "word"
    elif event.type == _PHONEME:
        # Eight bytes, without a final zero if all are used: a long symbol lacks its last character.
        symbol = event.id.string.decode("utf-8", errors="ignore")
        kind = "sound" if symbol else "other"
    return Event(kind, event.sample, event.text_position - 1, symbol)


@contextmanager
def _library() -> Iterator[tuple[ctypes.CDLL, int]]:
    """A fresh copy of the library, ready to speak, for one thread at a time."""
    loader = _loader()
    with _lock, _short(_data_folder()) as folder:
        before = locale.setlocale(locale.LC_CTYPE)
        try:
            library = ctypes.CDLL(loader.get_library_path())
        except OSError as error:
            raise ImportError(
                "espeakng-loader holds no library that loads on this machine "
                f"({platform.system()} {platform.machine()}): {error}"
            ) from error
        try:
            for name, (result, arguments) in _PROTOTYPES.items():
                function = getattr(library, name)
                function.restype, function.argtypes = result, arguments
            options = _PHONEME_EVENTS | _IN_IPA | _DO_NOT_EXIT
            rate = library.espeak_Initialize(_SYNCHRONOUS, 0, os.fsencode(folder), options)
            if rate <= 0:
                raise OSError(f"espeak-ng cannot read its data at {folder}")
            yield library, rate
            library.espeak_Terminate()
        finally:
            _unload(library)
            locale.setlocale(locale.LC_CTYPE, before)


def _loader():
    """The package that brings the library and its data."""
    try:
        import espeakng_loader
    except ImportError as error:
        raise ImportError(
            'speech is spoken by espeak-ng, which is not installed: pip install "mmlib[speech]"'
        ) from error
    return espeakng_loader


def _data_folder() -> Path:
    return Path(_loader().get_data_path())


@contextmanager
def _short(folder: Path) -> Iterator[Path]:
    """The folder, or a link to it whose path is short enough."""
    if len(os.fsencode(folder)) <= _LONGEST_PATH:
        yield folder
        return
    with tempfile.TemporaryDirectory() as scratch:
        link = Path(scratch, "espeak-ng-data")
        if len(os.fsencode(link)) > _LONGEST_PATH:
            raise OSError(
                f"espeak-ng cannot use a data path of more than {_LONGEST_PATH} bytes, and the "
                f"folder for temporary files is no shorter: got {folder} and {link}"
            )
        link.symlink_to(folder, target_is_directory=True)
        yield link


def _unload(library: ctypes.CDLL) -> None:
    """Drop the library with all that it remembers."""
    import _ctypes

    close = _ctypes.FreeLibrary if platform.system() == "Windows" else _ctypes.dlclose
    close(library._handle)

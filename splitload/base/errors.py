"""Every error splitload raises, in one tree.

SplitloadError
├── UsageError (ValueError)          a request that cannot be meant: an unknown name, a count below one
├── ModelError (ValueError)          a source model that cannot be read, checked, cut or run
├── ProfileError (ValueError)        a profile or device file that does not hold what it must
├── PartitionError (ValueError)      split points that do not fit the model
├── CheckpointError (ValueError)     a kept search that is damaged, or of another search
├── BundleError (ValueError)         a bundle that is incomplete, damaged or of another version
├── StageError (RuntimeError)        a stage that could not be loaded or run
├── TrainingError (ArithmeticError)  training whose loss is NaN or infinite
├── OutputError (OSError)            a result that could not be written
├── ClusterError (ConnectionError)   a cluster that cannot be reached, or cannot run what it is given
├── CertificateError (ValueError)    certificates that are missing, out of date, or open to others
├── DeviceError (RuntimeError)       a served device that cannot be reached, refuses, or answers what cannot be
└── MissingPackageError (ImportError)  an optional package is needed; the message holds the cure

What is no error, but less than was promised, is a warning (UserWarning): PortableWarning, LibraryWarning, CacheWarning,
DeviceWarning.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


class SplitloadError(Exception):
    """Root of all errors raised on purpose by splitload."""


class UsageError(SplitloadError, ValueError):
    """The request itself is wrong; the command line exits with 2."""


class ModelError(SplitloadError, ValueError):
    """The source model cannot be read, checked, cut or run."""


class ProfileError(SplitloadError, ValueError):
    """A profile or a device file does not hold what it must."""


class PartitionError(SplitloadError, ValueError):
    """Split points do not fit the model."""


class CheckpointError(SplitloadError, ValueError):
    """The file that keeps a search is damaged, or keeps another one; it is left as it is."""


class BundleError(SplitloadError, ValueError):
    """A bundle is incomplete, damaged, or of a version this one cannot read."""


class StageError(SplitloadError, RuntimeError):
    """A stage could not be loaded or run."""


class TrainingError(SplitloadError, ArithmeticError):
    """The loss of a training is NaN or infinite; nothing was written."""


class OutputError(SplitloadError, OSError):
    """A result could not be written; what stood there before is untouched, unless the message says otherwise."""


class ClusterError(SplitloadError, ConnectionError):
    """A cluster cannot be reached, or cannot run what it is given."""


class CertificateError(SplitloadError, ValueError):
    """Certificates are missing, out of date, do not fit each other, or are open to other users."""


class DeviceError(SplitloadError, RuntimeError):
    """A served device cannot be reached, refuses what it is asked, or answers what cannot be."""


class MissingPackageError(SplitloadError, ImportError):
    """An optional package is needed; the message holds the command that installs it."""


class PortableWarning(UserWarning):
    """A bundle runs its portable graph where a native one was hoped for; the message says what helps."""


class LibraryWarning(UserWarning):
    """The C library that is named cannot be used, and onnxruntime's Python module takes over; the message says why."""


class DeviceWarning(UserWarning):
    """A served device measured under conditions that may not be its usual ones; the message says which."""


class CacheWarning(UserWarning):
    """Something in the user's cache was damaged, and is made anew; the message says what."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """Return a `UsageError` for `name`, with near matches and every known name.

    Args:
        kind: What the name should have named, for example "device".
        name: What was given.
        known: The names that exist.
    """
    import difflib

    names = sorted(known)
    near = difflib.get_close_matches(str(name).lower(), names, n=2)
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    return UsageError(f"unknown {kind} '{name}'.{hint} Known: {', '.join(names)}.")

"""What a checkpoint is: one `LanguageModel`, one `Family` record per kind, one file a family.

`load` turns a folder, a Hub id or "sandbox" into a `LanguageModel`, without remote code and without pickle.
This room knows nothing of sampling or of safety.
"""

from typing import TYPE_CHECKING

from midward._front import front_door

if TYPE_CHECKING:
    from .errors import ModelError
    from .family import Family, FamilyInfo
    from .language_model import LanguageModel
    from .loading import families, load

__getattr__, __dir__, __all__ = front_door(__name__)

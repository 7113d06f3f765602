"""What a checkpoint is: one `LanguageModel`, one `Family` record per kind, one file a family.

`load` turns a folder, a Hub id or "sandbox" into a `LanguageModel`, without remote code and without pickle.
This room knows nothing of sampling or of safety.
"""

from .errors import ModelError
from .family import Family, FamilyInfo
from .language_model import LanguageModel
from .loading import families, load

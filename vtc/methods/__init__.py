"""The compression methods, one a file; importing this package registers them all."""

from importlib import import_module as _import
from pkgutil import iter_modules as _modules

for _module in _modules(__path__):
    _import(f"{__name__}.{_module.name}")

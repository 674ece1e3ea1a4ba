"""Find passes, emitters and gates by the names of their files."""

from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import entry_points
from inspect import getmembers, isabstract, isclass
from pkgutil import iter_modules
from types import ModuleType

from ..specs.errors import Fault, SpecError, quoted


class Registry:
    """The classes of one kind, one a file, in a package and in what third parties add to it.

    A third party adds one through an entry point of the group (`retouch.passes`), whose value is a
    module that holds one final subclass.
    """

    def __init__(self, kind: str, group: str, package: str, base: str) -> None:
        self.kind, self.group, self._package, self._base = kind, group, package, base

    def names(self) -> list[str]:
        """Return all names, sorted; none of them is imported.

        Raises:
            SpecError: an entry point claims a name that is taken.
        """
        own = [
            module.name for module in iter_modules(self._home().__path__) if not module.name.startswith("_")
        ]
        added = [entry.name for entry in entry_points(group=self.group)]
        taken = sorted(name for name in added if name in own or added.count(name) > 1)
        if taken:
            message = f"an installed package adds the {self.kind} `{taken[0]}`, whose name is taken"
            raise SpecError(Fault("E_REGISTRY_CLASH", message, hint="uninstall one of the two"))
        return sorted([*own, *added])

    def load(self, name: str) -> type:
        """Import the module called `name` and return its one final class.

        Raises:
            SpecError: there is none of that name.
        """
        if name not in self.names():
            near = get_close_matches(name, self.names(), n=1)
            hint = f"did you mean `{near[0]}`?" if near else f"there are: {', '.join(self.names())}"
            raise SpecError(Fault("E_UNKNOWN_NAME", f"no {self.kind} {quoted(name)}", hint=hint))
        return self._final_class(self._module(name))

    def _home(self) -> ModuleType:
        return import_module(self._package)

    def _module(self, name: str) -> ModuleType:
        for entry in entry_points(group=self.group, name=name):
            return import_module(entry.value)
        return import_module(f"{self._package}.{name}")

    def _final_class(self, module: ModuleType) -> type:
        base_module, _, base_name = self._base.rpartition(".")
        base = getattr(import_module(base_module), base_name)
        found = [
            member
            for _, member in getmembers(module, isclass)
            if issubclass(member, base) and not isabstract(member) and member.__module__ == module.__name__
        ]
        if len(found) != 1:
            raise TypeError(
                f"{module.__name__} holds {len(found)} final subclasses of {base_name}, expected one"
            )
        return found[0]


_ROOT = __name__.rpartition(".compiler.")[0]
passes = Registry("pass", "retouch.passes", f"{_ROOT}.passes", f"{_ROOT}.compiler.contract.Pass")
emitters = Registry("emitter", "retouch.emitters", f"{_ROOT}.compiler.emit", f"{_ROOT}.compiler.emit.Emitter")
gates = Registry("gate", "retouch.gates", f"{_ROOT}.compiler.gates", f"{_ROOT}.compiler.gates.Gate")
probes = Registry("probe", "retouch.probes", f"{_ROOT}.compiler.probes", f"{_ROOT}.compiler.probes.Probe")

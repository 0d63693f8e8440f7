"""The feature layouts of a loop, as the topic `features.layouts` says they stand."""

from __future__ import annotations

from collections.abc import Sequence

from gyre_core.features import Layout
from gyre_core.layouts import LayoutState
from gyre_core.spec import LoopSpec
from gyre_runtime.layouts import LayoutCatalog


class KnownLayouts:
    """See `Layouts`.

    Args:
        spec: of the loop, as gyre.yaml has it now; its layout is known without the topic while that is empty.
        catalog: the layouts of the topic.
    """

    def __init__(self, spec: LoopSpec, catalog: LayoutCatalog) -> None:
        self.loop, self._newest, self._catalog = spec.loop, Layout.compile(spec), catalog

    def columns(self, layout: str) -> Sequence[str] | None:
        """See `Layouts`; one whose definition was removed is not known any more."""
        known = self._catalog.known(self.loop)
        if layout == self._newest.hash and (layout in known or not known):
            return self._newest.columns
        spec = self._catalog.spec(self.loop, layout)
        return None if spec is None else Layout.compile(spec).columns

    def waits_for(self, layout: str) -> str:
        """See `Layouts`; a layout that the topic does not know is waited for, whatever gyre.yaml is here."""
        all_known = self._catalog.known(self.loop)
        known = all_known.get(layout)
        if known is None:
            if not all_known and layout == self._newest.hash:
                return ""
            return f"layout {layout} is not known: features-stream has not declared it, or refuses it"
        if known.state is LayoutState.READY:
            return ""
        if known.state is LayoutState.FILLING:
            return f"layout {layout} is being filled: {known.filled_share:.0%}"
        return f"layout {layout} is to be filled again"

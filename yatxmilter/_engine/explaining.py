"""
What a milter's exception means, where its own words do not say what to do.
"""

from __future__ import annotations

import difflib
from typing import Final

from twisted.python.failure import Failure

from yatxmilter._engine.awaitables import running_loop, wrong_reactor

__all__ = ["explained"]

#: What asyncio raises where no loop runs, or no task; and what libraries on top of it raise.
_WITHOUT_LOOP: Final = (
    "no running event loop",
    "should be used inside a task",
    "There is no current event loop",
)
_WITHOUT_LIBRARY: Final = ("AsyncLibraryNotFoundError", "NoEventLoopError")

#: libmilter's functions that other libraries have under other names.
FUNCTIONS: Final = {
    "addheader": "smfi_addheader(headerf, headerv), or smfi_insheader(hdridx, headerf, headerv)",
    "insheader": "smfi_insheader(hdridx, headerf, headerv)",
    "chgheader": "smfi_chgheader(headerf, hdridx, headerv)",
    "chgfrom": "smfi_chgfrom(mail, args)",
    "addrcpt": "smfi_addrcpt(rcpt), or smfi_addrcpt_par(rcpt, args)",
    "addrcpt_par": "smfi_addrcpt_par(rcpt, args)",
    "delrcpt": "smfi_delrcpt(rcpt)",
    "replacebody": "smfi_replacebody(bodyp)",
    "quarantine": "smfi_quarantine(reason)",
    "progress": "smfi_progress()",
    "getsymval": "smfi_getsymval(symname)",
    "setreply": "smfi_setreply(rcode, xcode, message), or smfi_setmlreply(rcode, xcode, *lines)",
    "setmlreply": "smfi_setmlreply(rcode, xcode, *lines)",
    "setsymlist": "smfi_setsymlist(stage, macros)",
    "setpriv": "an attribute of self, which keeps what is yours",
    "getpriv": "an attribute of self, which keeps what is yours",
    "smfi_setpriv": "an attribute of self, which keeps what is yours",
    "smfi_getpriv": "an attribute of self, which keeps what is yours",
}


def explained(failure: Failure, milter: object) -> Failure:
    """
    Make of a milter's failure one that says what to do, where we know better than its exception.

    :param milter: Whose failure it is.
    """
    error: BaseException = failure.value  # type: ignore[assignment]
    better: BaseException | None = None
    if isinstance(error, AttributeError):
        better = _right_name(error, milter)
    elif _wants_asyncio(error):
        better = wrong_reactor(f"asyncio was used ({error})")
    if better is None:
        return failure
    better.__cause__ = error
    return Failure(better.with_traceback(error.__traceback__))


def _wants_asyncio(error: BaseException) -> bool:
    if running_loop() is not None:
        return False
    if type(error).__name__ in _WITHOUT_LIBRARY:
        return True
    return type(error) is RuntimeError and any(words in str(error) for words in _WITHOUT_LOOP)


def _right_name(error: AttributeError, milter: object) -> AttributeError | None:
    name = error.name
    if error.obj is not milter or not isinstance(name, str):
        return None
    right = FUNCTIONS.get(name)
    if right is None and name.startswith("smfi_"):
        names = [one for one in dir(type(milter)) if one.startswith("smfi_")]
        right = next(iter(difflib.get_close_matches(name, names, 1)), None)
    if right is None:
        return None
    return AttributeError(f"{error}; here it is {right}", name=name, obj=milter)

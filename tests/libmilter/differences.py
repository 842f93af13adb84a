"""
The deliberate differences between libmilter and yatxmilter: the one table of them.

Each is a switch of the reference engine (`rules.Rules`), which shows exactly how far the
difference goes. Cases that show one are generated like all others: the real libmilter must do what
the reference does with the switch off, yatxmilter what it does with it on.
"""

from __future__ import annotations

from typing import NamedTuple


class Difference(NamedTuple):
    """
    One difference: what each library does, and why ours does not do the same.

    `rows` are the points of docs/differences.md that tell the user of it.
    """

    libmilter: str
    yatxmilter: str
    reason: str
    rows: tuple[str, ...]


DIFFERENCES = {
    "checked_codes": Difference(
        "sends a letter for some return codes at any stage, says nothing for the rest, takes 21"
        " and 22 for orders of its own",
        "takes the codes that make sense at a stage; for any other result, a bool or text included,"
        " answers on_error, and edits of an xxfi_eom that failed so are not sent (but where"
        " on_error lets the message pass)",
        "an MTA that gets no answer waits until its timeout; a wrong letter kills the filter",
        rows=(
            "return codes that a callback may give",
            "`xxfi_negotiate` that fails, or returns what is not an answer",
            "edits of an `xxfi_eom` that failed",
        ),
    ),
    "late_answers": Difference(
        "a verdict where no answer was promised (SMFIP_NR_*) is lost, and so is the conversation",
        "it is given at the next step that is answered; at once where the MTA did not take the"
        " promise; a refusal of one recipient becomes on_error, without its text",
        "the milter has decided, and the MTA must not be left waiting",
        rows=(
            "a final answer where none was promised (`SMFIP_NR_*`)",
            "such an answer of `xxfi_connect` or `xxfi_helo`",
            "a refusal of one recipient where no answer was promised (`SMFIP_NR_RCPT`)",
        ),
    ),
    "one_answer_for_last_chunk": Difference(
        "BODYEOB with data is answered twice when xxfi_body does not return CONTINUE",
        "one answer: xxfi_body's verdict, else that of xxfi_eom",
        "a second answer is taken for that of the next command",
        rows=("last body chunk in the end-of-message command",),
    ),
    "unknown_keeps_state": Difference(
        "an unknown SMTP command changes the state: the rest of the message can be lost",
        "it leaves the state as it is",
        "any SMTP client can send one in the middle of a message",
        rows=("unknown SMTP command inside a message",),
    ),
    "quit_nc_anywhere": Difference(
        "QUIT_NC works after an accepted message only, else it and the next CONNECT are dropped",
        "it works in any state: abort if in a message, close, a new connection without old macros",
        "the MTA says that a new connection follows, so one follows",
        rows=("QUIT_NC (a new connection on the same socket)",),
    ),
    "abort_in_message_only": Difference(
        "xxfi_abort is also called without a message, and twice for some broken packets",
        "it is called once for a message that is open",
        "milters undo in it what they did in xxfi_envfrom",
        rows=("`xxfi_abort`",),
    ),
    "own_marks": Difference(
        "the marks of states that may be skipped are only ever added to",
        "they are the connection's own, and what was negotiated takes the place of what was there"
        " before",
        "one connection must not loosen the checks of another; the table is put back before each"
        " case, so that this row is about negotiation alone",
        rows=("skipped steps",),
    ),
    "declined_not_called": Difference(
        "a callback whose step was declined is called if the MTA sends the step all the same",
        "it is answered CONTINUE and not called",
        "a milter sees what it asked for",
        rows=("a step that no milter asked for, sent all the same",),
    ),
    "local_skip": Difference(
        "SKIP is sent whether the MTA knows it or not, and xxfi_body called if body follows",
        "CONTINUE is sent where SKIP is not offered, and xxfi_body not called again in the message",
        "an MTA that does not know the answer drops the filter",
        rows=(
            "SKIP where the MTA does not offer it; body sent in spite of SKIP",
            "SKIP where no answer was promised (`SMFIP_NR_BODY`)",
        ),
    ),
    "no_header_fields": Difference(
        "BODY or BODYEOB behind DATA is dropped where header fields are wanted and the end of the"
        " header is not",
        "it is taken: a message may have no header fields",
        "the MTA waits for its time-out, and any SMTP client can send such a message",
        rows=(
            "body or end of message behind DATA, without header fields, where `xxfi_data` and"
            " `xxfi_header` are wanted and `xxfi_eoh` is not",
        ),
    ),
    "reply_ends_with_message": Difference(
        "the text of smfi_setreply is kept until it is used",
        "it is gone when its message ends; one set outside a message when it is used or the"
        " connection ends; one set in xxfi_abort or xxfi_close at once",
        "another message is not rejected with this one's reason",
        rows=("text of `smfi_setreply`",),
    ),
    "one_of_several": Difference(
        "knows one milter",
        "of several on one connection each has a text of smfi_setreply of its own, and that of the"
        " deciding one is sent; edits are sent with an answer that lets the message pass; each must"
        " be able to decline what it does not want; when one has discarded the message at a"
        " recipient the others hear no more of it",
        "together they are to be as good as each by itself",
        rows=("several milters on one connection",),
    ),
    "checked_values": Difference(
        "takes smfi_setmlreply without lines, CR and NUL and LF in header values, CR and LF"
        " in names, addresses, arguments, reasons and symbol lists, anything in header names; ends"
        " every text at a NUL",
        "refuses them; CR LF in header values becomes LF, and a tab is put behind an LF that no"
        " white space follows",
        "they forge header fields and SMTP replies, or stop the MTA",
        rows=(
            "line ends in header values",
            "`smfi_setmlreply` without lines, or with `None` for a line",
            "header names",
            "a lone CR in header values; CR or LF in addresses, ESMTP arguments, reasons"
            " and symbol lists",
            "NUL in any text that a milter gives: header names and values, addresses,"
            " ESMTP arguments, reasons, reply codes and texts, symbol lists",
        ),
    ),
    "edits_in_eom_only": Difference(
        "smfi_progress works anywhere, edits whenever the last command was BODYEOB",
        "both in xxfi_eom only",
        "elsewhere the MTA drops the filter",
        rows=("`smfi_progress` and edits",),
    ),
    "symlist_in_negotiate_only": Difference(
        "smfi_setsymlist after negotiation succeeds and does nothing",
        "it is refused",
        "it does nothing",
        rows=("`smfi_setsymlist` after negotiation",),
    ),
    "edits_together": Difference(
        "edits are written when they are made, so smfi_progress stays between them",
        "they are written with the answer, the pieces of a new body in a row behind the others;"
        " smfi_progress goes out at once, before them",
        "a milter that fails leaves no half of its edits behind, and Postfix wants the chunks of a"
        " new body in one run",
        rows=(
            "edits",
            "`smfi_replacebody` between other edits",
            "`smfi_progress` between two edits",
        ),
    ),
    "computed_request": Difference(
        "without xxfi_negotiate SKIP is never asked for; xxfi_negotiate that returns CONTINUE and"
        " leaves the preset alone gets all actions, and SKIP even where no body is wanted",
        "in both cases what xxfi_flags and the callbacks say, and SKIP if body is wanted",
        "xxfi_negotiate of CONTINUE means the same as none",
        rows=("negotiation",),
    ),
    "larger_packets": Difference(
        "the usual build knows no packets above 65,535 bytes: SMFIP_MDS_* are hidden from the"
        " milter, and asking for one fails",
        "they are shown, and can be asked for where they are offered",
        "libmilter built with that option does so too",
        rows=("packets above 65,535 bytes (`SMFIP_MDS_*`)",),
    ),
    "limited_macros": Difference(
        "takes as many macros for a stage as fit into a packet",
        "more than 512 close the connection (max_macros of the factory)",
        "MTAs send a few dozen at most; what is looked up must not cost without bound",
        rows=("macros for one stage",),
    ),
    "counted_fields": Difference(
        "takes index 0 in smfi_chgheader, and sends it",
        "refuses it",
        "the fields of a name are counted from 1, and MTAs take 0 for 1: it is a mistake by one",
        rows=("index 0 in `smfi_chgheader`",),
    ),
}

OTHER_ROWS = {
    "limits": "tests.protocol.test_limits.IdleTests.test_mta_that_is_silent_so_long_is_hung_up_on",
    "the spelling of addresses": "tests.cli.test_mistakes.MistakeTests.test_spelling_of_postfix",
    "a function in another thread than that of the connection": (
        "tests.engine.test_threads.ThreadTests.test_each_is_refused_with_what_to_use_instead"
    ),
}
"""
The points of docs/differences.md that one conversation cannot show, each with a test that does.
"""

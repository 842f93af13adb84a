"""
libmilter's engine as an executable table: what a case should come to, by its rules or by ours.

This is neither of the two libraries under test. With all `Rules` off its records must be those of
the real libmilter, which every differential run checks; so a rule switched on changes a model that
is known to be right, in the one place that the rule is about. The names of states and the order of
steps are those of libmilter's engine.c.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from .case import Answer, Case, Invocation, Reaction, Record
from .codec import c_result
from .reference_answers import Answers
from .reference_calls import ENDM, MAX_PAYLOAD, STAGES
from .reference_decode import connect_arguments, header_arguments
from .reference_tables import (
    ACCEPT,
    ALL_NO,
    ALL_NR,
    ALL_OPTS,
    CODES,
    COMMANDS,
    CONN,
    CONTINUE,
    DISCARD,
    END_SESSION,
    FAIL,
    HDRS,
    HELO,
    INIT,
    INTERNAL,
    KEEP,
    MAIL,
    MDS,
    MDS_1M,
    MDS_256K,
    NEXT,
    NODATA,
    NONE,
    NOREPLY,
    NOUNKNOWN,
    OPTIONS,
    Q_NC,
    QUIT,
    RCPT,
    REJECT,
    SKIP,
    SKIP_STEP,
    STEPS,
    TEMPFAIL,
    UNKN,
    VERDICTS,
)
from .rules import LIBMILTER, Rules

MAX_MACROS = 512
"""What yatxmilter takes for one stage unless its factory says otherwise."""

_NO_REACTION = Reaction()


def _negotiates(reaction: Reaction) -> bool:
    result = reaction.result
    if isinstance(result, bool):
        return False
    if result is None:
        return reaction.actions is None or reaction.steps is None
    return result in (CONTINUE, REJECT, ALL_OPTS)


class Wanted(NamedTuple):
    """What a milter asks for; `own_steps` is what libmilter itself goes by."""

    actions: int
    steps: int
    own_steps: int


class Reference(Answers):
    """One connection. `run` gives the whole record."""

    def __init__(self, case: Case, rules: Rules = LIBMILTER) -> None:
        super().__init__(rules, case.on_error)
        self.case = case
        self.registered = case.registered
        self.invocations: list[Invocation] = []
        self.script = {name: iter(reactions) for name, reactions in case.reactions}
        self.stream = case.stream
        self.consumed = 0
        self.limit = MAX_PAYLOAD
        self.state = INIT
        self.decider: int | None = None
        self.in_message = self.abort_due = self.skipped = False
        self.retired = False
        for name, (no, _, _) in STEPS.items():
            if name not in self.registered:
                self.steps |= no
        self.own_steps = self.steps
        self.skippable = 0
        self._mark()

    # ---- the loop

    def run(self) -> Record:
        """Run the case to the end of its connection."""
        failed = self._converse()
        self.context.state = self.state
        if self.rules.abort_in_message_only:
            self.abort_due = self.in_message
        if failed and self.abort_due:
            self._abort()
        if self.state != QUIT:
            self._invoke("close")
        return Record(self.invocations, bytes(self.context.output), self.consumed)

    def _converse(self) -> bool:
        """Handle packets; the result tells whether the session ended by a failure."""
        while True:
            self.abort_due = self._in_mail()
            ended = False
            found = self._read()
            if found is None or found[0] not in COMMANDS:
                return True
            letter, payload = found
            state, needs_payload, stale = COMMANDS[letter]
            if state != NONE and not self._legal(self.state, state):
                ended = self.in_message
                if self.abort_due:
                    self._abort()
                self.state = HELO
                if not self._legal(HELO, state):
                    if state == QUIT:
                        return False
                    continue
            if needs_payload and not payload:
                return True
            self._enter(state)
            for stage in range(stale, 7):
                self.context.macros[stage] = None
            called = len(self.invocations)
            result = self._handle(chr(letter), state, payload)
            if result == END_SESSION:
                if ended and called == len(self.invocations) and self.rules.abort_in_message_only:
                    # What could not be read ended a message, and began none that is known.
                    self.in_message = False
                return True
            if result == ACCEPT or (
                result in (REJECT, DISCARD, TEMPFAIL) and state not in (RCPT, UNKN)
            ):
                self.state = HELO
                self._end_message()
            elif state == ENDM:
                self._end_message()
            if state == QUIT:
                return False

    def _enter(self, state: int) -> None:
        if state == NONE:
            return
        self.context.state = state
        if not (state == UNKN and self.rules.unknown_keeps_state):
            self.state = state
        if MAIL <= state <= ENDM:
            self.in_message = True
        self.abort_due = self._in_mail()

    def _handle(self, letter: str, state: int, payload: bytes) -> int:
        if self.kept is not None and (CONN <= state <= ENDM):
            return self._give_kept(state, bool(payload))
        result: int = getattr(self, "_do_" + letter)(payload)
        return self._answer(result)

    def _in_mail(self) -> bool:
        if self.rules.abort_in_message_only:
            return self.in_message
        return MAIL <= self.state < ENDM

    def _abort(self) -> None:
        if not (self.rules.late_answers and self.kept is not None):
            self._end_message()
            if not self.retired:
                self._invoke("abort")
        self._end_message()

    def _end_message(self) -> None:
        self.decider = None
        if not self.in_message:
            return
        self.in_message = self.skipped = False
        if self.rules.reply_ends_with_message:
            self.context.end_message()
        if self.kept is not None and not self.kept.for_connection:
            self.kept = None

    def _read(self) -> tuple[int, bytes] | None:
        head = self.stream[self.consumed : self.consumed + 5]
        self.consumed += len(head)
        if len(head) < 5:
            return None
        length = struct.unpack(">I", head[:4])[0] - 1
        if length <= 0 or length > 0x7FFFFFFF:  # counted in signed numbers
            return head[4], b""
        if length > self.limit:
            return None
        payload = self.stream[self.consumed : self.consumed + length]
        self.consumed += len(payload)
        return (head[4], payload) if len(payload) == length else None

    def _legal(self, old: int, new: int) -> bool:
        if (new == UNKN and self.rules.unknown_keeps_state) or (
            new == Q_NC and self.rules.quit_nc_anywhere
        ):
            return True
        while not NEXT[old] >> new & 1:
            old += 1
            if old == HDRS and self.rules.no_header_fields:
                continue
            if old >= len(NEXT) or not self.skippable >> old & 1:
                return False
        return True

    def _mark(self) -> None:
        if self.rules.own_marks:
            self.skippable = 0
        for no, state, _ in STEPS.values():
            if self.steps & no:
                self.skippable |= 1 << state

    # ---- callbacks

    def _react(self, callback: str, *args: Answer) -> Reaction:
        invocation = Invocation(callback, args, [], len(self.context.output))
        self.invocations.append(invocation)
        if self.rules.one_of_several:
            self.context.speaker = self.case.owner(callback)
        reaction = next(self.script.get(callback, iter(())), _NO_REACTION)
        self.context.running = callback
        self.context.in_message = self.in_message
        for call in reaction.calls:
            invocation.answers.append(self.context.perform(call))
        self.context.running = ""
        return reaction

    def _invoke(self, callback: str, *args: Answer) -> int:
        result = self._react(callback, *args).result
        if self.rules.checked_codes and callback in CODES and not self._takes(callback, result):
            code = self._stand_in(callback)
            if callback == "eom" and code not in (CONTINUE, ACCEPT):
                self.context.edits.clear()
            return self._noted(callback, code)
        return self._noted(callback, c_result(result))

    def _noted(self, callback: str, code: int) -> int:
        # To the others of several the message is over; nobody asks them about it any more.
        several = self.rules.one_of_several and self.case.several
        silent = self.steps & STEPS["envrcpt"][2]
        if several and callback == "envrcpt" and code == DISCARD and not silent:
            self.decider = self.case.owner(callback)
        return code

    def _takes(self, callback: str, result: object) -> bool:
        if result is None:
            return True
        if isinstance(result, bool) or not isinstance(result, int):
            return False
        promised = callback in STEPS and self.steps & STEPS[callback][2]
        return result in CODES[callback] or bool(promised and result == NOREPLY)

    def _wanted(self, callback: str) -> bool:
        if self.rules.declined_not_called and self.steps & STEPS.get(callback, (0, 0, 0))[0]:
            return False
        if self.decider is not None and self.case.owner(callback) != self.decider:
            return False
        return callback in self.registered and not self.retired

    def _call(self, callback: str, *args: Answer) -> int:
        return self._invoke(callback, *args) if self._wanted(callback) else CONTINUE

    # ---- commands

    def _do_O(self, payload: bytes) -> int:
        if len(payload) < 12:
            return END_SESSION
        version, actions, offered = struct.unpack(">iII", payload[:12])
        if version < 2:
            return END_SESSION
        self.version = min(version, 6)
        hidden = INTERNAL & ~MDS if self.rules.larger_packets else INTERNAL
        self.offered = (offered or 0x3F) & ~hidden
        if not self._agree(actions or 0x0F):
            return END_SESSION
        self._mark()
        return OPTIONS

    def _agree(self, actions: int) -> bool:
        """Ask the milter what it wants, and hold it against what is offered."""
        wanted = self._ask(actions)
        if wanted is None or wanted.actions & ~actions & 0xFFFFFFFF:
            return False
        self.context.actions = wanted.actions
        self.steps = wanted.own_steps
        missing = wanted.steps & ~self.offered & 0xFFFFFFFF
        if missing & ~(NODATA | NOUNKNOWN) or self.rules.one_of_several and self._lacks():
            return False
        answered = wanted.steps & ~missing
        if answered & MDS_1M:
            answered &= ~MDS_256K
        self.answered_steps = answered
        size = 1048575 if answered & MDS_1M else 262143 if answered & MDS_256K else MAX_PAYLOAD
        self.limit = self.context.max_payload = size
        return True

    def _lacks(self) -> bool:
        """Tell whether one of several milters cannot decline what it does not want."""
        return self.case.several and any(
            no & ~self.offered & ~(NODATA | NOUNKNOWN)
            for number in range(self.case.members)
            for name, (no, _, _) in STEPS.items()
            if name not in self.registered or self.case.owner(name) != number
        )

    def _ask(self, actions: int) -> Wanted | None:
        computed = self.own_steps
        if self.rules.computed_request and "body" in self.registered:
            computed |= self.offered & SKIP_STEP
        if "negotiate" not in self.registered:
            return Wanted(self.case.flags, computed, self.steps)
        reaction = self._react("negotiate", actions, self.offered | ALL_NR, 0, 0)
        if self.rules.checked_codes and not _negotiates(reaction):
            return self._stand_in_asking(computed)
        result = c_result(reaction.result)
        with_skip = self.own_steps | self.offered & SKIP_STEP
        if result == ALL_OPTS:
            return Wanted(actions, with_skip, self.steps)
        if result != CONTINUE:
            return None
        preset = (actions, with_skip)
        if self.rules.computed_request and reaction.actions is None and reaction.steps is None:
            preset = (self.case.flags, computed)
        steps = preset[1] if reaction.steps is None else reaction.steps
        actions = preset[0] if reaction.actions is None else reaction.actions
        return Wanted(actions, steps & ~(ALL_NR & ~self.offered), steps)

    def _stand_in_asking(self, computed: int) -> Wanted | None:
        """Do without an answer of xxfi_negotiate, if on_error says so."""
        self.context.symbol_lists.clear()
        if self.on_error == CONTINUE:
            return Wanted(self.case.flags, computed, self.steps)
        self.retired = self.on_error == ACCEPT
        return Wanted(0, ALL_NO, ALL_NO) if self.retired else None

    def _do_C(self, payload: bytes) -> int:
        if not self._wanted("connect"):
            return CONTINUE
        arguments = connect_arguments(payload)
        return END_SESSION if arguments is None else self._invoke("connect", *arguments)

    def _do_H(self, payload: bytes) -> int:
        if not self._wanted("helo"):
            return CONTINUE
        if not payload.endswith(b"\0"):
            return FAIL
        return self._invoke("helo", payload.partition(b"\0")[0])

    def _argv(self, callback: str, payload: bytes) -> int:
        if not self._wanted(callback):
            return CONTINUE
        strings = payload.split(b"\0")[:-1]
        return self._invoke(callback, *strings) if strings else END_SESSION

    def _do_M(self, payload: bytes) -> int:
        return self._argv("envfrom", payload)

    def _do_R(self, payload: bytes) -> int:
        return self._argv("envrcpt", payload)

    def _do_T(self, payload: bytes) -> int:
        return self._call("data")

    def _do_L(self, payload: bytes) -> int:
        if not self._wanted("header"):
            return CONTINUE
        arguments = header_arguments(payload)
        return END_SESSION if arguments is None else self._invoke("header", *arguments)

    def _do_N(self, payload: bytes) -> int:
        return self._call("eoh")

    def _do_B(self, payload: bytes) -> int:
        if self.skipped:
            return CONTINUE
        result = self._call("body", payload)
        self.skipped = self.rules.local_skip and result == SKIP
        return result

    def _do_E(self, payload: bytes) -> int:
        if payload:
            result = self._do_B(payload)
            if self.rules.one_answer_for_last_chunk:
                if result in (*VERDICTS, END_SESSION):
                    return result
            elif result != CONTINUE:
                self._answer(result)
                return result
        result = self._call("eom")
        if self.rules.one_of_several and self.case.several and result not in (CONTINUE, ACCEPT):
            self.context.edits.clear()
        # The pieces of a new body in a row, behind the others.
        self.context.edits.sort(key=lambda edit: edit[4:5] == b"b")
        self.context.output += b"".join(self.context.edits)
        self.context.edits.clear()
        return result

    def _do_U(self, payload: bytes) -> int:
        return self._call("unknown", payload.partition(b"\0")[0])

    def _do_A(self, payload: bytes) -> int:
        if not self.rules.abort_in_message_only or self.in_message:
            self._abort()
        return NOREPLY

    def _do_Q(self, payload: bytes) -> int:
        if self.in_message and self.rules.abort_in_message_only:
            self._abort()
        self._invoke("close")
        self.context.macros = [None] * 7
        return NOREPLY

    def _do_K(self, payload: bytes) -> int:
        self._do_Q(payload)
        if self.rules.quit_nc_anywhere:
            self.kept = None
            self.context.replies.clear()
        return NOREPLY

    def _do_D(self, payload: bytes) -> int:
        strings = payload[1:].split(b"\0")[:-1]
        stage = STAGES.find(payload[:1])
        if not strings or stage < 0:
            return FAIL
        self.context.macros[stage] = strings
        if self.rules.limited_macros and payload.count(b"\0") // 2 > MAX_MACROS:
            return END_SESSION
        return KEEP

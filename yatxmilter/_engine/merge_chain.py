"""
``merge="chain"``: one milter after the other, as if the MTA ran each by itself.

From connect to DATA each command goes down the chain. Headers and body are taken in first; at the
end of the message each milter in turn gets all of it, as the ones before it have left it, and
makes its edits. They reach the MTA once, at the end. ACCEPT takes its own milter out; a negative
answer ends the chain.

What is walked here may wait at any milter, so it is written as coroutines, which are stepped by
hand and cost little more than the calls as long as nobody waits.
"""

from __future__ import annotations

from collections.abc import Collection, Coroutine
from functools import partial
from types import MappingProxyType
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from yatxmilter import constants as c
from yatxmilter._engine.addresses import DECODERS
from yatxmilter._engine.chain_edits import ChainEdits
from yatxmilter._engine.member import Callback, Member
from yatxmilter._engine.merge import Callees, Merge
from yatxmilter._engine.pending import Pending, run_coroutine
from yatxmilter._engine.return_codes import CONTINUE_PACKET, response
from yatxmilter._mail.body_spool import BodySpool
from yatxmilter._mail.header_models import HeaderModel, header_model
from yatxmilter._wire.actions import Quarantine, ReplaceBody, read_edit
from yatxmilter._wire.commands import (
    BODY_ROW,
    EOH_ROW,
    EOM_ROW,
    HEADER_ROW,
    UNKNOWN_ROW,
    Command,
)
from yatxmilter._wire.macros import mta_flavour
from yatxmilter._wire.negotiation import data_size
from yatxmilter.constants import SMFIS_CONTINUE, ReturnCode

__all__ = ["Chain"]

_log = Logger()

_CONTENT = frozenset((HEADER_ROW, EOH_ROW, BODY_ROW))

# So many bytes of body are given to milters in one turn of the reactor.
_TURN = 4_000_000


class _Message:
    """
    What is known of the message that is open.

    """

    def __init__(self, header: HeaderModel, body: BodySpool, *, stops_when_held: bool) -> None:
        self.header = header
        self.body = body
        self._edits: ChainEdits | None = None
        self._stops_when_held = stops_when_held

    def edit(self, packets: list[bytes]) -> bool:
        """
        Make a milter's edits.

        :return: Whether no further filter would be shown the message: Postfix holds one that is
            quarantined.
        """
        body: list[bytes] = []
        held = False
        if self._edits is None:
            self._edits = ChainEdits(self.header)
        for packet in packets:
            edit = read_edit(packet[4], packet[5:], c.SMFI_CURR_ACTS)
            if isinstance(edit, ReplaceBody):
                body.append(packet)
                continue
            self._edits.add(edit, packet, self.header)
            self.header.apply(edit)
            held = held or isinstance(edit, Quarantine)
        if body:
            self._edits.replace_body(body)
            self.body.replace(packet[5:] for packet in body)
        return held and self._stops_when_held

    def edits(self) -> list[bytes]:
        """
        Give what the milters have made of it as packets.
        """
        return [] if self._edits is None else self._edits.packets(self.header)


class Chain(Merge):
    """
    One milter after the other.
    """

    # How the MTA is told from its fellow.
    symbols = MappingProxyType({c.SMFIM_CONNECT: b"v"})

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._message: _Message | None = None
        # The coroutine that is waiting, what it is for, and what it waits for.
        self._walk: Deferred[None] | None = None
        self._walked: Command | None = None
        self._arrival: Deferred[None] | None = None
        self._sizes: dict[Member, int] = {}
        self._given = 0

    def compile(self, steps: int, *, skip_offered: bool) -> None:
        """
        Work out what is called for which command.
        """
        super().compile(steps, skip_offered=skip_offered)
        self._leading_space = bool(steps & c.SMFIP_HDR_LEADSPC)
        self._sizes = {m: data_size(m.request.steps) for m in self._members}

    def step(self, command: Command) -> None:
        """
        Send a command down the chain, or take in a piece of the content.
        """
        if self._kept is not None and command is not UNKNOWN_ROW:
            self._give_kept(self._kept, command)
        elif command in _CONTENT:
            self._take(command)
        elif command is EOM_ROW:
            self._start(command, self._content())
        else:
            callees = self._plan[command.index]
            arguments = DECODERS[command.index](self._session.payload) if callees else ()
            if arguments is not None:
                self._start(command, self._down(command, callees, arguments))

    # ---- coroutines

    def _start(self, command: Command, walk: Coroutine[Any, Any, None]) -> None:
        self._walked = command
        result = run_coroutine(walk)
        if isinstance(result, Deferred):
            self._walk = result
            result.addErrback(self._walk_failed)

    def _walk_failed(self, failure: Failure) -> None:
        if failure.check(CancelledError):
            return
        _log.failure("The chain broke; this is a bug of yatxmilter", failure)
        self._end_round()
        command = self._walked
        # The MTA must not be left waiting, nor the message get through.
        if command is not None and not command.nr & self._unanswered:
            self._answer(command, (), c.SMFIS_TEMPFAIL, response(c.SMFIS_TEMPFAIL, None))

    async def _ask(
        self, member: Member, command: Command, callback: Callback, *arguments: object
    ) -> ReturnCode:
        result = self._caller.call(member, command, callback, *arguments)
        if isinstance(result, Pending):
            await self._arrive(result)
            result = result.result
        return self._read(member, command, result)

    async def _arrive(self, pending: Pending) -> None:
        arrival = self._arrival = Deferred()
        self.round = [pending]
        if self._walked is EOM_ROW and self._progress_timer is None:
            self._start_progress()
        pending.wait(self._clock, partial(self._resume, self._settle))
        await arrival

    async def _pause(self, member: Member) -> None:
        """
        Let other connections have their turn.
        """
        turn: Deferred[None] = Deferred(lambda _: call.cancel())
        call = self._clock.callLater(0, turn.callback, None)
        await self._arrive(Pending(member, EOM_ROW, turn))

    def _settle(self, pending: Pending) -> None:
        if pending in self.round:
            self.round = []
            assert self._arrival is not None
            self._arrival.callback(None)

    def cancel(self) -> None:
        """
        Cancel all that is awaited.
        """
        super().cancel()
        walk = self._walk
        self._walk = None
        if walk is not None:
            walk.cancel()

    def give_up(self) -> None:
        """
        Cancel what is awaited, and answer TEMPFAIL where that is owed.
        """
        if self.round and self._walked is not None:
            owed = not self._walked.nr & self._unanswered
            self.cancel()
            if owed:
                self._out.append(response(c.SMFIS_TEMPFAIL, None))

    # ---- connect to DATA

    async def _down(
        self,
        command: Command,
        callees: Callees,
        arguments: tuple[Any, ...],
    ) -> None:
        for position in callees:
            member = self._members[position]
            if command.in_message:
                # Before the call: the MTA may go while it is awaited.
                self._joined = max(self._joined, position + 1)
            own = (arguments[0].copy(),) if command.has_argv else arguments
            code = await self._ask(member, command, member.view(command), *own)
            if code is c.SMFIS_ACCEPT:
                self._leave(member, command)
            elif code is not SMFIS_CONTINUE:
                self._end_chain(command, member, code)
                return
        if command.in_message:
            self._joined = len(self._members)
        if self._all_left() and not command.nr & self._unanswered and command is not UNKNOWN_ROW:
            packet = response(c.SMFIS_ACCEPT, None)
            self._answer(command, self._members, c.SMFIS_ACCEPT, packet)
        else:
            self._continue(command, bool(callees))

    def _end_chain(self, command: Command, member: Member, code: ReturnCode) -> None:
        packet = response(code, member.context.take_reply(code))
        if not command.nr & self._unanswered:
            self._answer(command, [member], code, packet)
        else:
            self._keep(command, member, code, packet)

    # ---- headers to the end of the message

    def _take(self, command: Command) -> None:
        self._joined = len(self._members)
        if self._plan[command.index]:
            arguments = DECODERS[command.index](self._session.payload)
            assert arguments is not None
            message = self._message
            if message is None:
                message = self._message = self._new_message()
            if command is HEADER_ROW:
                message.header.receive(*arguments)
            elif command is BODY_ROW:
                message.body.write(*arguments)
        if not (self._session.last_chunk or command.nr & self._unanswered):
            self._out.append(CONTINUE_PACKET)

    def _new_message(self) -> _Message:
        macros = self._session.macros
        version = macros.get("v") or ""
        flavour = mta_flavour(version, macros.get("j"))
        header = header_model(flavour, leading_space=self._leading_space)
        body = BodySpool(self._spool_memory, flavour)
        return _Message(header, body, stops_when_held=version.startswith("Postfix"))

    async def _content(self) -> None:
        self._joined = len(self._members)
        message = self._message
        if message is None:
            message = self._message = self._new_message()
        remaining = [member for member in self._members if member not in self._left]
        while remaining:
            member = remaining.pop(0)
            shows_header = not member.request.steps & c.SMFIP_NOHDRS
            message.header.begin_filter(shows_header=shows_header)
            code = await self._give(member, message)
            if code is c.SMFIS_ACCEPT:
                self._leave(member, EOM_ROW)
            elif code is not SMFIS_CONTINUE:
                self._end_round()
                packet = response(code, member.context.take_reply(code))
                self._refuse_message(packet, remaining)
                return
            edits = member.context.take_edits()
            if edits and not member.failed and message.edit(edits):
                break
        self._end_round()
        self._out += message.edits()
        final = self._all_left()
        self._out.append(response(c.SMFIS_ACCEPT if final else SMFIS_CONTINUE, None))
        self._end(final=final, unfinished=remaining)

    async def _give(self, member: Member, message: _Message) -> ReturnCode:
        """
        Give a milter all of the message, up to its first answer that is no continue.
        """
        callback = self._callee(member, HEADER_ROW)
        if callback is not None:
            for name, value in message.header.shown():
                code = await self._ask(member, HEADER_ROW, callback, name, value)
                if code is not SMFIS_CONTINUE:
                    return code
        callback = self._callee(member, EOH_ROW)
        if callback is not None:
            code = await self._ask(member, EOH_ROW, callback)
            if code is not SMFIS_CONTINUE:
                return code
        for chunk in message.body.chunks(self._sizes[member]):
            # Looked up each time: SKIP takes it away.
            callback = self._callee(member, BODY_ROW)
            if callback is None:
                break
            code = await self._ask(member, BODY_ROW, callback, chunk)
            if code is not SMFIS_CONTINUE:
                return code
            self._given += len(chunk)
            if self._given >= _TURN:
                self._given = 0
                await self._pause(member)
        callback = self._callee(member, EOM_ROW)
        if callback is None:
            return SMFIS_CONTINUE
        member.context.editing = True
        code = await self._ask(member, EOM_ROW, callback)
        member.context.editing = False
        return code

    def _callee(self, member: Member, command: Command) -> Callback | None:
        return member.view(command) if member.position in self._plan[command.index] else None

    def end_message(self, aborted: Collection[Member]) -> None:
        """
        Forget what belongs to the message, its content included.
        """
        if self._message is not None:
            self._message.body.close()
            self._message = None
        super().end_message(aborted)

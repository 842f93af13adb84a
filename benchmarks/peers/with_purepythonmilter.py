"""
The benchmark's milter on purepythonmilter: every hook given, each reads its arguments.

Its public way to run listens on TCP only; on a UNIX socket its server is started by hand.
"""

# ruff: noqa: D103

from __future__ import annotations

import asyncio
import logging

import purepythonmilter as ppm
import settings
from purepythonmilter.server.milterserver import MilterServer

seen = 0


def read(*texts: object) -> ppm.VerdictOrContinue:
    global seen
    for each in texts:
        seen += len(each)
    return ppm.Continue()


async def on_connect(command: ppm.Connect) -> ppm.VerdictOrContinue:
    return read(command.connection_info_args.hostname)


async def on_helo(command: ppm.Helo) -> ppm.VerdictOrContinue:
    return read(command.hostname)


async def on_mail_from(command: ppm.MailFrom) -> ppm.VerdictOrContinue:
    return read(command.address, *command.esmtp_args)


async def on_rcpt_to(command: ppm.RcptTo) -> ppm.VerdictOrContinue:
    return read(command.address, *command.esmtp_args)


async def on_data(command: ppm.Data) -> ppm.VerdictOrContinue:
    return read()


async def on_unknown(command: ppm.Unknown) -> ppm.VerdictOrContinue:
    return read(command.data_raw)


async def on_header(command: ppm.Header) -> ppm.VerdictOrContinue:
    return read(command.name, command.text)


async def on_header_without_reply(command: ppm.Header) -> None:
    read(command.name, command.text)


async def on_end_of_headers(command: ppm.EndOfHeaders) -> ppm.VerdictOrContinue:
    return read()


async def on_body_chunk(command: ppm.BodyChunk) -> ppm.VerdictOrContinue:
    return read(command.data_raw)


async def on_end_of_message(command: ppm.EndOfMessage) -> ppm.VerdictOrContinue:
    if settings.WAIT:
        await asyncio.sleep(settings.WAIT)
    if not settings.ADD:
        return read()
    field = ppm.AppendHeader(headername="X-Bench", headertext="seen")
    return ppm.Continue(manipulations=[field])


async def on_abort(command: ppm.Abort) -> None:
    pass


async def on_quit(command: ppm.Quit) -> None:
    pass


async def serve_unix(milter: ppm.PurePythonMilter) -> None:
    handler = MilterServer(app_factory=milter._get_factory()).handle_connection
    server = await asyncio.start_unix_server(handler, settings.PATH, backlog=4096)
    await server.serve_forever()


def main() -> None:
    logging.basicConfig(level=logging.ERROR)
    milter = ppm.PurePythonMilter(
        hook_on_connect=on_connect,
        hook_on_helo=on_helo,
        hook_on_mail_from=on_mail_from,
        hook_on_rcpt_to=on_rcpt_to,
        hook_on_data=on_data,
        hook_on_unknown=on_unknown,
        hook_on_header=on_header_without_reply if settings.NOREPLY else on_header,
        hook_on_end_of_headers=on_end_of_headers,
        hook_on_body_chunk=on_body_chunk,
        hook_on_end_of_message=on_end_of_message,
        hook_on_abort=on_abort,
        hook_on_quit=on_quit,
        can_add_headers=True,
        restrict_symbols=None,
    )
    if settings.PATH:
        asyncio.run(serve_unix(milter))
    else:
        milter.run_server(host="127.0.0.1", port=settings.PORT)


if __name__ == "__main__":
    main()

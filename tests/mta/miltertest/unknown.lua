-- xxfi_unknown: its answer, in a transaction that goes on.
local check = dofile(folder .. "/check.lua")
local connection = check.up_to("envfrom")
check.done(mt.unknown(connection, "XFOO bar"))
check.reply(connection, expected)
check.continue(connection, mt.rcptto(connection, "<rcpt@sink.example>"))
mt.disconnect(connection)

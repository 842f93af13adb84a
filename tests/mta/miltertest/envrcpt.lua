-- xxfi_envrcpt: a recipient with ESMTP arguments, and the answer.
local check = dofile(folder .. "/check.lua")
local connection = check.up_to("envfrom")
check.done(mt.rcptto(connection, "<rcpt@sink.example>", "NOTIFY=NEVER"))
check.reply(connection, expected)
mt.disconnect(connection)

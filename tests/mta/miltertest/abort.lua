-- xxfi_abort: in a transaction, after which another one begins.
local check = dofile(folder .. "/check.lua")
local connection = check.up_to("envrcpt")
check.done(mt.abort(connection))
check.continue(connection, mt.mailfrom(connection, "<again@client.example>"))
check.done(mt.abort(connection))
-- Nothing is open now, so this one is not for the milter.
check.done(mt.abort(connection))
mt.disconnect(connection)

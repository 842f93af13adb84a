-- SMFIP_NR_*: steps that get no answer; miltertest does not wait for one then.
local check = dofile(folder .. "/check.lua")
local connection = check.connect()
check.done(mt.negotiate(connection, nil, nil, nil))
for _, step in ipairs({ SMFIP_NR_HELO, SMFIP_NR_HDR, SMFIP_NR_BODY }) do
    check.that(mt.test_option(connection, step), "step not silent: " .. step)
end
check.that(not mt.test_option(connection, SMFIP_NR_MAIL), "SMFIP_NR_MAIL asked for")
check.continue(connection, mt.conninfo(connection, "client.example.test", "192.0.2.1"))
check.done(mt.helo(connection, "client.example.test"))
check.continue(connection, mt.mailfrom(connection, "<sender@client.example>"))
check.continue(connection, mt.rcptto(connection, "<rcpt@sink.example>"))
check.done(mt.header(connection, "Subject", "A test"))
check.done(mt.header(connection, "From", "sender@client.example"))
check.continue(connection, mt.eoh(connection))
check.done(mt.bodystring(connection, "A body\r\n"))
check.done(mt.eom(connection))
check.reply(connection, expected)
mt.disconnect(connection)

-- SMFIP_HDR_LEADSPC: values keep their blanks, both ways.
local check = dofile(folder .. "/check.lua")
local connection = check.connect()
check.done(mt.negotiate(connection, nil, nil, nil))
check.that(mt.test_option(connection, SMFIP_HDR_LEADSPC), "SMFIP_HDR_LEADSPC not asked for")
-- miltertest puts the blank before the value itself, as an MTA has it.
check.continue(connection, mt.header(connection, "Subject", "  A test"))
check.done(mt.eom(connection))
check.reply(connection, expected)
check.that(mt.eom_check(connection, MT_HDRADD, "X-Added", "  value"), "no such header field")
mt.disconnect(connection)

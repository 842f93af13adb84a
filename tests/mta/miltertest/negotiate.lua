-- Negotiation: a milter that wants xxfi_helo and one kind of edit gets no more than these.
local check = dofile(folder .. "/check.lua")
local connection = check.connect()
check.done(mt.negotiate(connection, nil, nil, nil))
check.that(mt.test_action(connection, SMFIF_ADDHDRS), "SMFIF_ADDHDRS not asked for")
for _, action in ipairs({ SMFIF_CHGHDRS, SMFIF_CHGBODY, SMFIF_ADDRCPT, SMFIF_DELRCPT }) do
    check.that(not mt.test_action(connection, action), "action asked for: " .. action)
end
check.that(not mt.test_option(connection, SMFIP_NOHELO), "SMFIP_NOHELO asked for")
local declined = {
    SMFIP_NOCONNECT, SMFIP_NOMAIL, SMFIP_NORCPT, SMFIP_NODATA, SMFIP_NOHDRS,
    SMFIP_NOEOH, SMFIP_NOBODY, SMFIP_NOUNKNOWN,
}
for _, step in ipairs(declined) do
    check.that(mt.test_option(connection, step), "step not declined: " .. step)
end
check.continue(connection, mt.helo(connection, "client.example.test"))
mt.disconnect(connection)

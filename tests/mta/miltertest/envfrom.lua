-- xxfi_envfrom: a sender with ESMTP arguments, and the answer.
local check = dofile(folder .. "/check.lua")
local connection = check.up_to("helo")
check.done(mt.mailfrom(connection, "<sender@client.example>", "SIZE=42", "BODY=8BITMIME"))
check.reply(connection, expected)
mt.disconnect(connection)

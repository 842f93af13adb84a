-- Negotiation: a milter that cannot agree closes the connection without an answer.
local check = dofile(folder .. "/check.lua")
local connection = check.connect()
local ok, problem = pcall(mt.negotiate, connection, nil, nil, nil)
check.that(not ok or problem ~= nil, "the milter has agreed")

-- What all scripts need: a connection to the milter, and checks that say what went wrong.
--
-- The test sets the globals "folder" (of the scripts), "socket" (of the milter) and "expected" (the
-- name of the reply to the command that the script is about).  miltertest keeps an error's text to
-- itself, so it is printed before the error is raised.

local check = {}

function check.that(condition, what)
    if not condition then
        local text = debug.traceback(what, 2)
        mt.echo(text)
        error(text)
    end
end

-- The functions of miltertest give nil if all is well, else a text.
function check.done(problem)
    check.that(problem == nil, "unexpected: " .. tostring(problem))
end

local names = {}
for name, value in pairs(_G) do
    if string.find(name, "^SMFIR_") then
        names[value] = name
    end
end

function check.reply(connection, name)
    local reply = mt.getreply(connection)
    local got = names[reply] or tostring(reply)
    check.that(got == name, "expected " .. name .. ", got " .. got)
end

function check.continue(connection, problem)
    check.done(problem)
    check.reply(connection, "SMFIR_CONTINUE")
end

function check.connect()
    local connection = mt.connect(socket)
    check.that(connection ~= nil, "no connection to " .. socket)
    return connection
end

-- The commands up to a stage, all answered with "continue".
local steps = {
    { "connect", function(c) return mt.conninfo(c, "client.example.test", "192.0.2.1") end },
    { "helo", function(c) return mt.helo(c, "client.example.test") end },
    { "envfrom", function(c) return mt.mailfrom(c, "<sender@client.example>") end },
    { "envrcpt", function(c) return mt.rcptto(c, "<rcpt@sink.example>") end },
    { "data", function(c) return mt.data(c) end },
    { "header", function(c) return mt.header(c, "Subject", "A test") end },
    { "eoh", function(c) return mt.eoh(c) end },
    { "body", function(c) return mt.bodystring(c, "A body\r\n") end },
}

function check.up_to(stage)
    local connection = check.connect()
    for _, step in ipairs(steps) do
        check.continue(connection, step[2](connection))
        if step[1] == stage then
            return connection
        end
    end
    error("no such stage: " .. stage)
end

-- A whole message; the reply to its end is the expected one.
function check.message()
    local connection = check.up_to("body")
    check.done(mt.eom(connection))
    check.reply(connection, expected)
    return connection
end

return check

// The benchmark's milter on emersion's go-milter: every method defined, each reads its arguments.
package main

import (
	"net"
	"net/textproto"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/emersion/go-milter"
)

var (
	addHeader = os.Getenv("BENCH_ADD") == "1"
	wait      time.Duration
)

type bench struct {
	seen int
}

func (b *bench) Connect(host, family string, port uint16, addr net.IP, m *milter.Modifier) (milter.Response, error) {
	b.seen += len(host) + len(addr)
	return milter.RespContinue, nil
}

func (b *bench) Helo(name string, m *milter.Modifier) (milter.Response, error) {
	b.seen += len(name)
	return milter.RespContinue, nil
}

func (b *bench) MailFrom(from string, m *milter.Modifier) (milter.Response, error) {
	b.seen += len(from)
	return milter.RespContinue, nil
}

func (b *bench) RcptTo(rcptTo string, m *milter.Modifier) (milter.Response, error) {
	b.seen += len(rcptTo)
	return milter.RespContinue, nil
}

func (b *bench) Header(name, value string, m *milter.Modifier) (milter.Response, error) {
	b.seen += len(name) + len(value)
	return milter.RespContinue, nil
}

func (b *bench) Headers(h textproto.MIMEHeader, m *milter.Modifier) (milter.Response, error) {
	return milter.RespContinue, nil
}

func (b *bench) BodyChunk(chunk []byte, m *milter.Modifier) (milter.Response, error) {
	b.seen += len(chunk) + int(chunk[0])
	return milter.RespContinue, nil
}

func (b *bench) Body(m *milter.Modifier) (milter.Response, error) {
	if wait > 0 {
		time.Sleep(wait)
	}
	if addHeader {
		if err := m.AddHeader("X-Bench", "seen"); err != nil {
			return nil, err
		}
	}
	return milter.RespContinue, nil
}

func main() {
	milliseconds, _ := strconv.Atoi(os.Getenv("BENCH_WAIT"))
	wait = time.Duration(milliseconds) * time.Millisecond
	where := os.Getenv("BENCH_LISTEN")
	network, address := "unix", strings.TrimPrefix(where, "unix:")
	if strings.HasPrefix(where, "inet:") {
		parts := strings.Split(strings.TrimPrefix(where, "inet:"), "@")
		network, address = "tcp", net.JoinHostPort(parts[1], parts[0])
	}
	listener, err := net.Listen(network, address)
	if err != nil {
		panic(err)
	}
	server := milter.Server{
		NewMilter: func() milter.Milter { return &bench{} },
		Actions:   milter.OptAddHeader,
	}
	panic(server.Serve(listener))
}

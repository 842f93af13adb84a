// The benchmark's milter on d--j's go-milter: every method defined, each reads its arguments.
package main

import (
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/d--j/go-milter"
)

var (
	addHeader = os.Getenv("BENCH_ADD") == "1"
	wait      time.Duration
)

type bench struct {
	seen int
}

func (b *bench) NewConnection(m milter.Modifier) error {
	return nil
}

func (b *bench) Connect(host, family string, port uint16, addr string, m milter.Modifier) (*milter.Response, error) {
	b.seen += len(host) + len(addr)
	return milter.RespContinue, nil
}

func (b *bench) Helo(name string, m milter.Modifier) (*milter.Response, error) {
	b.seen += len(name)
	return milter.RespContinue, nil
}

func (b *bench) MailFrom(from, esmtpArgs string, m milter.Modifier) (*milter.Response, error) {
	b.seen += len(from) + len(esmtpArgs)
	return milter.RespContinue, nil
}

func (b *bench) RcptTo(rcptTo, esmtpArgs string, m milter.Modifier) (*milter.Response, error) {
	b.seen += len(rcptTo) + len(esmtpArgs)
	return milter.RespContinue, nil
}

func (b *bench) Data(m milter.Modifier) (*milter.Response, error) {
	return milter.RespContinue, nil
}

func (b *bench) Header(name, value string, m milter.Modifier) (*milter.Response, error) {
	b.seen += len(name) + len(value)
	return milter.RespContinue, nil
}

func (b *bench) Headers(m milter.Modifier) (*milter.Response, error) {
	return milter.RespContinue, nil
}

func (b *bench) BodyChunk(chunk []byte, m milter.Modifier) (*milter.Response, error) {
	b.seen += len(chunk) + int(chunk[0])
	return milter.RespContinue, nil
}

func (b *bench) EndOfMessage(m milter.Modifier) (*milter.Response, error) {
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

func (b *bench) Abort(m milter.Modifier) error {
	return nil
}

func (b *bench) Unknown(cmd string, m milter.Modifier) (*milter.Response, error) {
	b.seen += len(cmd)
	return milter.RespContinue, nil
}

func (b *bench) Cleanup(m milter.Modifier) {
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
	var protocol milter.OptProtocol
	if os.Getenv("BENCH_NOREPLY") == "1" {
		protocol = milter.OptNoHeaderReply
	}
	server := milter.NewServer(
		milter.WithMilter(func() milter.Milter { return &bench{} }),
		milter.WithAction(milter.OptAddHeader),
		milter.WithProtocols(protocol),
	)
	panic(server.Serve(listener))
}

package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// relay is a way to ringfence that can be cut.
type relay struct {
	net.Listener
	target string
	lock   sync.Mutex
	open   []net.Conn
	opened int
}

func listen(target string) (*relay, error) {
	listener, err := net.Listen("tcp", "localhost:0")
	if err != nil {
		return nil, err
	}
	between := &relay{Listener: listener, target: target}
	go between.serve()
	return between, nil
}

func (between *relay) serve() {
	for {
		client, err := between.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial("tcp", between.target)
		if err != nil {
			client.Close()
			continue
		}
		between.lock.Lock()
		between.open = append(between.open, client, server)
		between.opened++
		between.lock.Unlock()
		go pass(client, server)
		go pass(server, client)
	}
}

// pass ends both when one ends.
func pass(to, from net.Conn) {
	_, _ = io.Copy(to, from)
	to.Close()
	from.Close()
}

// cut ends every connection, without a word to either side.
func (between *relay) cut() {
	between.lock.Lock()
	defer between.lock.Unlock()
	for _, connection := range between.open {
		connection.Close()
	}
	between.open = nil
}

// reconnected waits until that many connections have been opened in all.
func (between *relay) reconnected(ctx context.Context, times int) error {
	for {
		between.lock.Lock()
		opened := between.opened
		between.lock.Unlock()
		if opened >= times {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the client connected %d times: %w", opened, ctx.Err())
		case <-time.After(10 * time.Millisecond):
		}
	}
}

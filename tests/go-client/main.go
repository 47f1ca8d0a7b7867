// Command go-client uses etcd through ringfence the way programs do: many watches on one client, a
// watch that is resumed, leases that are kept alive, locks, elections, transactions. It ends with
// exit code 0 when everything came out as etcd promises, and otherwise says what did not.
//
// usage: go-client ENDPOINT CA CERTIFICATE KEY PREFIX FOREIGN-KEY
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
)

// Nothing here takes longer unless it hangs.
const patience = 40 * time.Second

// settings is what the program was told.
type settings struct {
	endpoint, ca, certificate, key string
	// prefix is where the program may do as it likes; foreign is a key that it may not touch.
	prefix, foreign string
}

func main() {
	if len(os.Args) != 7 {
		fmt.Fprintln(os.Stderr, "usage: go-client ENDPOINT CA CERTIFICATE KEY PREFIX FOREIGN-KEY")
		os.Exit(2)
	}
	told := settings{os.Args[1], os.Args[2], os.Args[3], os.Args[4], os.Args[5], os.Args[6]}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := run(ctx, told); err != nil {
		fmt.Fprintln(os.Stderr, "go-client:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, told settings) error {
	client, err := told.connect()
	if err != nil {
		return err
	}
	defer client.Close()
	for _, part := range []struct {
		name string
		run  func(context.Context, *clientv3.Client, settings) error
	}{
		{"transactions", transactions},
		{"many watches on one client", manyWatches},
		{"a denied watch beside others", deniedWatch},
		{"a watch that is resumed", resumedWatch},
		{"a lease that is kept alive", keptAlive},
		{"a mutex", mutex},
		{"an election", election},
		{"software transactional memory", transactionalMemory},
	} {
		started := time.Now()
		if err := part.run(ctx, client, told); err != nil {
			return fmt.Errorf("%s: %w", part.name, err)
		}
		fmt.Printf("%s: %d ms\n", part.name, time.Since(started).Milliseconds())
	}
	return nil
}

func (told settings) connect() (*clientv3.Client, error) {
	pair, err := tls.LoadX509KeyPair(told.certificate, told.key)
	if err != nil {
		return nil, err
	}
	pem, err := os.ReadFile(told.ca)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s holds no certificate", told.ca)
	}
	return clientv3.New(clientv3.Config{
		Endpoints:   []string{told.endpoint},
		DialTimeout: 10 * time.Second,
		TLS:         &tls.Config{Certificates: []tls.Certificate{pair}, RootCAs: roots},
	})
}

// transactions writes only where nothing is, and is denied as a whole for one foreign key.
func transactions(ctx context.Context, client *clientv3.Client, told settings) error {
	key := told.prefix + "txn"
	for attempt, expected := range []bool{true, false} {
		reply, err := client.Txn(ctx).
			If(clientv3.Compare(clientv3.CreateRevision(key), "=", 0)).
			Then(clientv3.OpPut(key, "first")).
			Else(clientv3.OpGet(key)).
			Commit()
		if err != nil {
			return err
		}
		if reply.Succeeded != expected {
			return fmt.Errorf("attempt %d succeeded: %v", attempt, reply.Succeeded)
		}
	}
	_, err := client.Txn(ctx).Then(clientv3.OpPut(key, "second"), clientv3.OpPut(told.foreign, "v")).Commit()
	if !errors.Is(err, rpctypes.ErrPermissionDenied) {
		return fmt.Errorf("a foreign key: %v", err)
	}
	found, err := client.Get(ctx, key)
	if err != nil {
		return err
	}
	if value := string(found.Kvs[0].Value); value != "first" {
		return fmt.Errorf("the value is %q", value)
	}
	return nil
}

// manyWatches shares one stream between watchers; each sees its own key, every event once, in order.
func manyWatches(ctx context.Context, client *clientv3.Client, told settings) error {
	const watchers, events = 20, 50
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	results := make(chan error, watchers)
	var ready sync.WaitGroup
	for watcher := range watchers {
		ready.Add(1)
		key := told.prefix + "watched/" + strconv.Itoa(watcher)
		channel := client.Watch(ctx, key, clientv3.WithCreatedNotify(), clientv3.WithPrevKV())
		go func() { results <- counted(channel, key, events, ready.Done) }()
	}
	ready.Wait()
	for event := range events {
		for watcher := range watchers {
			key := told.prefix + "watched/" + strconv.Itoa(watcher)
			if _, err := client.Put(ctx, key, strconv.Itoa(event)); err != nil {
				return err
			}
		}
	}
	for range watchers {
		if err := <-results; err != nil {
			return err
		}
	}
	return nil
}

// counted expects the values 0, 1, 2 and so on of one key.
func counted(channel clientv3.WatchChan, key string, events int, created func()) error {
	next := 0
	for reply := range channel {
		if err := reply.Err(); err != nil {
			return err
		}
		if reply.Created {
			created()
			continue
		}
		for _, event := range reply.Events {
			if string(event.Kv.Key) != key || string(event.Kv.Value) != strconv.Itoa(next) {
				return fmt.Errorf("%s = %s instead of %s = %d", event.Kv.Key, event.Kv.Value, key, next)
			}
			if next > 0 && string(event.PrevKv.Value) != strconv.Itoa(next-1) {
				return fmt.Errorf("before %d there was %s", next, event.PrevKv.Value)
			}
			next++
		}
		if next == events {
			return nil
		}
	}
	return fmt.Errorf("the watch of %s ended after %d events", key, next)
}

// deniedWatch is told why, while another watch on the same stream goes on.
func deniedWatch(ctx context.Context, client *clientv3.Client, told settings) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	key := told.prefix + "beside"
	fine := client.Watch(ctx, key, clientv3.WithCreatedNotify())
	if reply := <-fine; !reply.Created {
		return fmt.Errorf("not created: %+v", reply)
	}
	// The client keeps the text that etcd gives as a reason, status and all.
	denied := rpctypes.ErrGRPCPermissionDenied.Error()
	reply := <-client.Watch(ctx, told.foreign)
	if !reply.Canceled || reply.Err() == nil || reply.Err().Error() != denied {
		return fmt.Errorf("the foreign watch: %+v, %v", reply, reply.Err())
	}
	if _, err := client.Put(ctx, key, "v"); err != nil {
		return err
	}
	if reply := <-fine; len(reply.Events) != 1 {
		return fmt.Errorf("the other watch: %+v, %v", reply, reply.Err())
	}
	return nil
}

// resumedWatch loses its connection again and again, and misses nothing: the client resumes by
// itself, from the revision that it has seen.
func resumedWatch(ctx context.Context, client *clientv3.Client, told settings) error {
	key := told.prefix + "resumed"
	between, err := listen(strings.TrimPrefix(told.endpoint, "https://"))
	if err != nil {
		return err
	}
	defer between.Close()
	told.endpoint = "https://localhost:" + strconv.Itoa(between.Addr().(*net.TCPAddr).Port)
	cut, err := told.connect()
	if err != nil {
		return err
	}
	defer cut.Close()
	channel := cut.Watch(ctx, key, clientv3.WithCreatedNotify(), clientv3.WithPrevKV())
	if reply := <-channel; !reply.Created {
		return fmt.Errorf("not created: %+v", reply)
	}
	done := make(chan error, 1)
	const events = 30
	go func() { done <- counted(channel, key, events, func() {}) }()
	for event := range events {
		// What is written from here on is not seen as it happens.
		if event%10 == 5 {
			between.cut()
		}
		if event%10 == 8 {
			if err := between.reconnected(ctx, event/10+2); err != nil {
				return err
			}
		}
		if _, err := client.Put(ctx, key, strconv.Itoa(event)); err != nil {
			return err
		}
	}
	return <-done
}

// keptAlive outlives its own time to live, and takes its key with it when it is revoked.
func keptAlive(ctx context.Context, client *clientv3.Client, told settings) error {
	key := told.prefix + "leased"
	lease, err := client.Grant(ctx, 2)
	if err != nil {
		return err
	}
	if _, err := client.Put(ctx, key, "v", clientv3.WithLease(lease.ID)); err != nil {
		return err
	}
	alive, stop := context.WithCancel(ctx)
	defer stop()
	replies, err := client.KeepAlive(alive, lease.ID)
	if err != nil {
		return err
	}
	for round := range 6 {
		if reply := <-replies; reply == nil || reply.ID != lease.ID || reply.TTL <= 0 {
			return fmt.Errorf("round %d: %+v", round, reply)
		}
	}
	if found, err := client.Get(ctx, key); err != nil || found.Count != 1 {
		return fmt.Errorf("the key is not there: %v, %v", found, err)
	}
	if _, err := client.Revoke(ctx, lease.ID); err != nil {
		return err
	}
	if found, err := client.Get(ctx, key); err != nil || found.Count != 0 {
		return fmt.Errorf("the key is there: %v, %v", found, err)
	}
	return nil
}

// mutex lets several clients count without losing a step.
func mutex(ctx context.Context, client *clientv3.Client, told settings) error {
	const workers, steps = 4, 10
	counter := told.prefix + "counter"
	if _, err := client.Put(ctx, counter, "0"); err != nil {
		return err
	}
	results := make(chan error, workers)
	for range workers {
		go func() {
			session, err := concurrency.NewSession(client)
			if err != nil {
				results <- err
				return
			}
			defer session.Close()
			lock := concurrency.NewMutex(session, told.prefix+"mutex")
			for range steps {
				if err := lock.Lock(ctx); err != nil {
					results <- err
					return
				}
				if err := increment(ctx, client, counter); err != nil {
					results <- err
					return
				}
				if err := lock.Unlock(ctx); err != nil {
					results <- err
					return
				}
			}
			results <- nil
		}()
	}
	for range workers {
		if err := <-results; err != nil {
			return err
		}
	}
	found, err := client.Get(ctx, counter)
	if err != nil {
		return err
	}
	if value := string(found.Kvs[0].Value); value != strconv.Itoa(workers*steps) {
		return fmt.Errorf("counted to %s", value)
	}
	return nil
}

// increment reads and writes in two calls: without a lock around it, steps are lost.
func increment(ctx context.Context, client *clientv3.Client, key string) error {
	found, err := client.Get(ctx, key)
	if err != nil {
		return err
	}
	value, err := strconv.Atoi(string(found.Kvs[0].Value))
	if err != nil {
		return err
	}
	_, err = client.Put(ctx, key, strconv.Itoa(value+1))
	return err
}

// election has a second candidate win when the first resigns; an observer sees both.
func election(ctx context.Context, client *clientv3.Client, told settings) error {
	sessions := make([]*concurrency.Session, 2)
	for position := range sessions {
		session, err := concurrency.NewSession(client)
		if err != nil {
			return err
		}
		defer session.Close()
		sessions[position] = session
	}
	first := concurrency.NewElection(sessions[0], told.prefix+"election")
	second := concurrency.NewElection(sessions[1], told.prefix+"election")
	if err := first.Campaign(ctx, "first"); err != nil {
		return err
	}
	observing, stop := context.WithCancel(ctx)
	defer stop()
	leaders := second.Observe(observing)
	if leader := <-leaders; string(leader.Kvs[0].Value) != "first" {
		return fmt.Errorf("the leader is %s", leader.Kvs[0].Value)
	}
	won := make(chan error, 1)
	go func() { won <- second.Campaign(ctx, "second") }()
	if err := first.Proclaim(ctx, "still first"); err != nil {
		return err
	}
	if leader := <-leaders; string(leader.Kvs[0].Value) != "still first" {
		return fmt.Errorf("the leader is %s", leader.Kvs[0].Value)
	}
	if err := first.Resign(ctx); err != nil {
		return err
	}
	if err := <-won; err != nil {
		return err
	}
	if leader := <-leaders; string(leader.Kvs[0].Value) != "second" {
		return fmt.Errorf("the leader is %s", leader.Kvs[0].Value)
	}
	return second.Resign(ctx)
}

// transactionalMemory moves amounts between two keys; their sum never changes.
func transactionalMemory(ctx context.Context, client *clientv3.Client, told settings) error {
	const workers, moves = 4, 10
	from, to := told.prefix+"from", told.prefix+"to"
	if _, err := client.Put(ctx, from, "1000"); err != nil {
		return err
	}
	if _, err := client.Put(ctx, to, "0"); err != nil {
		return err
	}
	results := make(chan error, workers)
	for range workers {
		go func() {
			var err error
			for move := 0; move < moves && err == nil; move++ {
				_, err = concurrency.NewSTM(client, func(memory concurrency.STM) error {
					have, _ := strconv.Atoi(memory.Get(from))
					got, _ := strconv.Atoi(memory.Get(to))
					memory.Put(from, strconv.Itoa(have-1))
					memory.Put(to, strconv.Itoa(got+1))
					return nil
				}, concurrency.WithAbortContext(ctx))
			}
			results <- err
		}()
	}
	for range workers {
		if err := <-results; err != nil {
			return err
		}
	}
	found, err := client.Get(ctx, from)
	if err != nil {
		return err
	}
	if value := string(found.Kvs[0].Value); value != strconv.Itoa(1000-workers*moves) {
		return fmt.Errorf("%s is left", value)
	}
	return nil
}

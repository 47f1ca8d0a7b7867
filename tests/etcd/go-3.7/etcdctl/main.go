// Command etcdctl is the stock etcd client: nothing here changes how it behaves.
package main

import "go.etcd.io/etcd/etcdctl/v3/ctlv3"

func main() {
	ctlv3.MustStart()
}

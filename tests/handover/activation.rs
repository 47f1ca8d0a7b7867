//! Sockets of a service manager: what waits on them is served, and what does not belong is refused.

use std::net::TcpListener;
use std::os::fd::OwnedFd;

use crate::knocking::{Fared, knock};
use crate::program::Program;
use crate::support::{Etcd, Pki, Ringfence, http_get, wait_for};

/// A config and its folder; the ringfence that was started with it has ended.
fn ended(pki: &Pki, endpoint: &str) -> Ringfence {
    let mut ringfence = Ringfence::start(pki, endpoint);
    assert_eq!(ringfence.stop().code(), Some(0));
    ringfence
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_came_before_ringfence_was_there_is_served_across_restarts() {
    let pki = Pki::make();
    let etcd = Etcd::start_plain("3.7");
    let scene = ended(&pki, &etcd.endpoint());
    let socket = TcpListener::bind(("127.0.0.1", scene.port)).unwrap();
    let config = pki.client_config(Some("acme"), &["h2"]);
    for name in ["one", "two"] {
        let early = {
            let (config, port) = (config.clone(), scene.port);
            tokio::spawn(async move { knock(&config, port).await })
        };
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        assert!(!early.is_finished(), "it waits in the queue of the socket");
        let mut activated = Program::activated(&scene, name, socket.try_clone().unwrap().into());
        assert_eq!(early.await.unwrap(), Fared::Served, "{}", activated.log());
        assert_eq!(knock(&config, scene.port).await, Fared::Served);
        // What was not passed is bound as ever.
        assert_eq!(http_get(scene.admin_port, "/livez").unwrap().0, 200);
        let status = tokio::task::block_in_place(|| activated.stop());
        assert_eq!(status.code(), Some(0), "{}", activated.log());
    }
}

#[test]
fn a_foreign_socket_is_refused_by_name_and_so_is_what_is_no_socket() {
    let pki = Pki::make();
    let scene = ended(&pki, "http://127.0.0.1:1");
    let refused = |name: &str, socket: OwnedFd, expected: &[&str]| {
        let mut program = Program::activated(&scene, name, socket);
        assert_eq!(program.wait().code(), Some(1));
        let said = program.log();
        assert!(expected.iter().all(|part| said.contains(part)), "{said}");
        // Nothing was begun.
        assert!(!said.contains(" serving "), "{said}");
    };
    let foreign = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = foreign.local_addr().unwrap();
    let says = format!("the service manager passes a socket that listens on {address}; ");
    let configured = format!("127.0.0.1:{}, 127.0.0.1:{}", scene.port, scene.admin_port);
    let parts = [says.as_str(), "`client.listen`", "`admin.listen`", &configured, "hint: "];
    refused("foreign", foreign.into(), &parts);
    let file = std::fs::File::open("/dev/null").unwrap();
    refused("file", file.into(), &["no TCP socket that listens, as number 1", "hint: "]);
    let own = TcpListener::bind(("127.0.0.1", scene.port)).unwrap();
    let connected = std::net::TcpStream::connect(own.local_addr().unwrap()).unwrap();
    refused("connected", connected.into(), &["does not listen"]);
}

//! One single-thread runtime per core, and one acceptor that hands each socket to the least-loaded of them.
//! Knows nothing of TLS or h2: a connection is whatever future the caller makes of a socket.

use std::net::{TcpListener, TcpStream};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use tokio::runtime::Builder;
use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio::task::LocalSet;

use crate::Outcome;

const MAX_CONNECTIONS_PER_WORKER: usize = 4096;

/// Serves until the process is ended. `state` is made once per worker, on its thread, and shared by its connections.
pub fn serve<State, Make, Handle, Done>(
    listen: &str,
    threads: usize,
    make: Make,
    handle: Handle,
) -> Outcome<()>
where
    State: 'static,
    Make: Fn() -> State + Clone + Send + 'static,
    Handle: Fn(tokio::net::TcpStream, Rc<State>) -> Done + Clone + Send + 'static,
    Done: Future<Output = Outcome<()>> + 'static,
{
    let listener = TcpListener::bind(listen).map_err(|error| format!("{listen}: {error}"))?;
    let workers: Vec<Worker> = (0..threads.max(1))
        .map(|_| {
            let (sender, sockets) = mpsc::channel(MAX_CONNECTIONS_PER_WORKER);
            let open = Arc::new(AtomicUsize::new(0));
            let worker = Worker { sender, open: Arc::clone(&open) };
            let (make, handle) = (make.clone(), handle.clone());
            thread::spawn(move || run_worker(sockets, &open, &make, &handle));
            worker
        })
        .collect();
    for socket in listener.incoming() {
        let socket = socket.map_err(|error| format!("accept: {error}"))?;
        let worker =
            workers.iter().min_by_key(|worker| worker.open.load(Ordering::Relaxed)).unwrap();
        worker.take(socket);
    }
    Ok(())
}

struct Worker {
    sender: Sender<TcpStream>,
    open: Arc<AtomicUsize>,
}

impl Worker {
    /// Over the cap the socket is dropped, which closes it.
    fn take(&self, socket: TcpStream) {
        if self.open.load(Ordering::Relaxed) >= MAX_CONNECTIONS_PER_WORKER {
            return;
        }
        self.open.fetch_add(1, Ordering::Relaxed);
        if self.sender.try_send(socket).is_err() {
            self.open.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

fn run_worker<State, Make, Handle, Done>(
    mut sockets: Receiver<TcpStream>,
    open: &Arc<AtomicUsize>,
    make: &Make,
    handle: &Handle,
) where
    State: 'static,
    Make: Fn() -> State,
    Handle: Fn(tokio::net::TcpStream, Rc<State>) -> Done,
    Done: Future<Output = Outcome<()>> + 'static,
{
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let tasks = LocalSet::new();
    let state = Rc::new(make());
    tasks.block_on(&runtime, async {
        while let Some(socket) = sockets.recv().await {
            let open = Arc::clone(open);
            let connection = prepared(socket).map(|socket| handle(socket, Rc::clone(&state)));
            tokio::task::spawn_local(async move {
                let outcome = match connection {
                    Ok(connection) => connection.await,
                    Err(message) => Err(message),
                };
                if let Err(message) = outcome {
                    eprintln!("ringfence-bench: connection: {message}");
                }
                open.fetch_sub(1, Ordering::Relaxed);
            });
        }
    });
}

fn prepared(socket: TcpStream) -> Outcome<tokio::net::TcpStream> {
    let prepare = || {
        socket.set_nonblocking(true)?;
        socket.set_nodelay(true)?;
        tokio::net::TcpStream::from_std(socket)
    };
    prepare().map_err(|error| error.to_string())
}

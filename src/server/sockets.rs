//! Where the sockets come from that ringfence listens on: the service manager, an older ringfence that hands its own
//! over, or the system. What was passed must be in the config.
//!
//! It never goes on without a socket that was passed: clients would wait on it for nobody.

use std::net::SocketAddr;
use std::os::fd::{AsFd as _, OwnedFd};

use listenfd::ListenFd;
use rustix::net::sockopt::socket_acceptconn;
use tokio::net::TcpListener;

use super::ServeError;

/// The most sockets that are passed or handed over.
pub(super) const SOCKETS_MAX: usize = 64;

/// Who passed a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passer {
    /// The service manager, when it started this process.
    Manager,
    /// The ringfence whose place this one takes.
    Older,
}

/// Why what was passed is not listened on.
#[derive(Debug, thiserror::Error)]
pub enum PassedError {
    /// More than anybody configures.
    #[error(
        "{0} passes {1} sockets, more than {most}\n  hint: only those of `client.listen` and `admin.listen`",
        most = SOCKETS_MAX
    )]
    TooMany(Passer, usize),
    /// A file, a datagram socket, a connection.
    #[error("{passer} passes no TCP socket that listens, as number {number} (from 1): {why}\n  hint: {}", passer.hint())]
    NoListener {
        /// Who.
        passer: Passer,
        /// Which of those that were passed.
        number: usize,
        /// What it is instead.
        why: String,
    },
    /// It listens where the config does not, or twice.
    #[error(
        "{passer} passes a socket that listens on {address}; `client.listen` and `admin.listen` are {configured}, each once\n  hint: {}",
        passer.hint()
    )]
    Foreign {
        /// Who.
        passer: Passer,
        /// Where it listens.
        address: SocketAddr,
        /// The addresses of the config.
        configured: String,
    },
}

/// A socket that was passed, and where it listens.
#[derive(Debug)]
pub(super) struct Passed {
    passer: Passer,
    address: SocketAddr,
    listener: std::net::TcpListener,
}

/// The sockets that are served.
#[derive(Debug)]
pub(super) struct Sockets {
    /// Those of `client.listen`, in its order.
    pub(super) clients: Vec<TcpListener>,
    pub(super) admin: TcpListener,
}

/// The same sockets once more, to be handed over; the kernel closes a socket only when all its copies are gone.
#[derive(Debug)]
pub(super) struct Copies {
    pub(super) addresses: Vec<SocketAddr>,
    pub(super) sockets: Vec<OwnedFd>,
}

impl Passer {
    const fn hint(self) -> &'static str {
        match self {
            Self::Manager => {
                "`ListenStream=` of its .socket unit is to be an address of `client.listen` or `admin.listen`, as it stands there"
            }
            Self::Older => {
                "give both ringfences the same addresses, or stop the older one instead of `--take-over`"
            }
        }
    }
}

impl std::fmt::Display for Passer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Manager => "the service manager",
            Self::Older => "the older ringfence",
        })
    }
}

/// Those of the service manager (`LISTEN_FDS`). It is asked before there are other threads: the variables go, so that
/// nobody takes the same sockets again.
///
/// # Errors
/// When something else was passed.
pub(super) fn from_manager() -> Result<Vec<Passed>, PassedError> {
    let mut given = ListenFd::from_env();
    if given.len() > SOCKETS_MAX {
        return Err(PassedError::TooMany(Passer::Manager, given.len()));
    }
    let mut passed = Vec::new();
    for number in 0..given.len() {
        // It is close-on-exec from here on.
        let taken = given.take_tcp_listener(number);
        let listener = taken.map_err(|error| no_listener(Passer::Manager, number, &error))?;
        if let Some(listener) = listener {
            passed.push(Passed::new(Passer::Manager, number, listener)?);
        }
    }
    Ok(passed)
}

/// Those of an older ringfence, close-on-exec already.
///
/// # Errors
/// When something else was passed.
pub(super) fn from_older(sockets: Vec<OwnedFd>) -> Result<Vec<Passed>, PassedError> {
    let sockets = sockets.into_iter().enumerate();
    sockets.map(|(number, fd)| Passed::new(Passer::Older, number, fd.into())).collect()
}

fn no_listener(passer: Passer, number: usize, why: &dyn ToString) -> PassedError {
    PassedError::NoListener { passer, number: number + 1, why: why.to_string() }
}

impl Passed {
    fn new(
        passer: Passer,
        number: usize,
        listener: std::net::TcpListener,
    ) -> Result<Self, PassedError> {
        let fault = |error: std::io::Error| no_listener(passer, number, &error);
        let address = listener.local_addr().map_err(fault)?;
        if !socket_acceptconn(&listener).map_err(|error| fault(error.into()))? {
            let why = format!("the socket at {address} does not listen");
            return Err(no_listener(passer, number, &why));
        }
        listener.set_nonblocking(true).map_err(fault)?;
        Ok(Self { passer, address, listener })
    }

    pub(super) const fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Sockets {
    /// Takes those that were passed, and binds what is not among them.
    ///
    /// # Errors
    /// When one was passed that the config does not name, or an address cannot be listened on.
    pub(super) async fn open(
        mut passed: Vec<Passed>,
        listen: &[SocketAddr],
        admin: SocketAddr,
    ) -> Result<Self, ServeError> {
        // Before anything is bound: a start that fails has done nothing.
        if let Some(foreign) = foreign(&passed, listen, admin) {
            return Err(foreign.into());
        }
        let mut clients = Vec::new();
        for address in listen {
            clients.push(take_or_bind(&mut passed, "client.listen", *address).await?);
        }
        let admin = take_or_bind(&mut passed, "admin.listen", admin).await?;
        Ok(Self { clients, admin })
    }

    /// # Errors
    /// When there are no file descriptors left.
    pub(super) fn copies(&self) -> std::io::Result<Copies> {
        let mut copies = Copies { addresses: Vec::new(), sockets: Vec::new() };
        for listener in self.clients.iter().chain([&self.admin]) {
            copies.addresses.push(listener.local_addr()?);
            copies.sockets.push(listener.as_fd().try_clone_to_owned()?);
        }
        Ok(copies)
    }
}

/// The first that the config does not name, or that is there twice.
fn foreign(passed: &[Passed], listen: &[SocketAddr], admin: SocketAddr) -> Option<PassedError> {
    let configured: Vec<SocketAddr> = listen.iter().copied().chain([admin]).collect();
    let is_foreign = |(number, one): &(usize, &Passed)| {
        let mut before = passed.iter().take(*number);
        !configured.contains(&one.address) || before.any(|other| other.address == one.address)
    };
    let (_, found) = passed.iter().enumerate().find(is_foreign)?;
    let configured: Vec<String> = configured.iter().map(SocketAddr::to_string).collect();
    let (passer, address) = (found.passer, found.address);
    Some(PassedError::Foreign { passer, address, configured: configured.join(", ") })
}

async fn take_or_bind(
    passed: &mut Vec<Passed>,
    setting: &'static str,
    address: SocketAddr,
) -> Result<TcpListener, ServeError> {
    let listener = match passed.iter().position(|one| one.address == address) {
        Some(found) => TcpListener::from_std(passed.swap_remove(found).listener),
        None => TcpListener::bind(address).await,
    };
    listener.map_err(|error| ServeError::Listen { setting, address, error })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listener() -> std::net::TcpListener {
        std::net::TcpListener::bind("127.0.0.1:0").unwrap()
    }

    fn older(listener: &std::net::TcpListener) -> OwnedFd {
        listener.as_fd().try_clone_to_owned().unwrap()
    }

    #[tokio::test]
    async fn what_was_passed_is_matched_by_its_address_and_the_rest_is_bound() {
        let (one, two) = (listener(), listener());
        let (first, second) = (one.local_addr().unwrap(), two.local_addr().unwrap());
        let passed = from_older(vec![older(&two), older(&one)]).unwrap();
        let free = "127.0.0.1:0".parse().unwrap();
        let sockets = Sockets::open(passed, &[first, free], second).await.unwrap();
        let [passed, bound] = sockets.clients.as_slice() else { panic!("{sockets:?}") };
        assert_eq!(passed.local_addr().unwrap(), first);
        assert_eq!(sockets.admin.local_addr().unwrap(), second);
        assert_ne!(bound.local_addr().unwrap().port(), 0);
        let copies = sockets.copies().unwrap();
        assert_eq!((copies.addresses.len(), copies.sockets.len()), (3, 3));
        assert_eq!((copies.addresses[0], copies.addresses[2]), (first, second));
    }

    #[tokio::test]
    async fn a_foreign_socket_is_refused_by_name_and_so_is_one_that_is_there_twice() {
        let (one, two) = (listener(), listener());
        let (first, second) = (one.local_addr().unwrap(), two.local_addr().unwrap());
        let admin = "127.0.0.1:9".parse().unwrap();
        let refused = async |sockets: Vec<OwnedFd>, named: SocketAddr| {
            let passed = from_older(sockets).unwrap();
            let error = Sockets::open(passed, &[first], admin).await.unwrap_err().to_string();
            let expected = format!(
                "the older ringfence passes a socket that listens on {named}; `client.listen` and \
                 `admin.listen` are {first}, {admin}, each once\n  hint: "
            );
            assert!(error.starts_with(&expected), "{error}");
        };
        refused(vec![older(&one), older(&two)], second).await;
        refused(vec![older(&one), older(&one)], first).await;
    }

    #[test]
    fn what_does_not_listen_is_refused() {
        let datagrams = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let file = std::fs::File::open("/dev/null").unwrap();
        for (fd, why) in [(datagrams.into(), "does not listen"), (file.into(), "as number 1")] {
            let error = from_older(vec![fd]).unwrap_err().to_string();
            assert!(error.contains(why) && error.contains("hint: "), "{error}");
        }
    }
}

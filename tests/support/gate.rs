//! A door in front of a server: shut, whoever connects is refused and whoever was connected is cut off, as when the
//! server is down; the server itself keeps running for the others.

use std::net::{Ipv4Addr, SocketAddr};

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};

/// The door. Dropping it shuts it for good.
pub struct Gate {
    /// What clients connect to.
    pub address: SocketAddr,
    target: SocketAddr,
    /// Bound and never listening: keeps the port ours while the door is shut, and refuses.
    _reservation: TcpSocket,
    open: Option<AbortHandle>,
    is_mute: watch::Sender<bool>,
}

impl Gate {
    /// An open door in front of a server on this machine.
    pub fn open_to(port: u16) -> Self {
        let reservation = socket(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
        let address = reservation.local_addr().unwrap();
        let target = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut this =
            Self { address, target, _reservation: reservation, open: None, is_mute: watch::Sender::new(false) };
        this.open();
        this
    }

    /// Opens it.
    pub fn open(&mut self) {
        let listener = socket(self.address).listen(64).unwrap();
        self.open = Some(tokio::spawn(pass(listener, self.target, self.is_mute.subscribe())).abort_handle());
    }

    /// Lets nothing through any more: connections stay and more are accepted, but nobody says a word, as when the server is
    /// stopped or its network drops everything.
    pub fn mute(&self) {
        self.is_mute.send_replace(true);
    }

    /// Shuts it, and cuts off who is inside.
    pub fn shut(&mut self) {
        if let Some(open) = self.open.take() {
            open.abort();
        }
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.shut();
    }
}

fn socket(address: SocketAddr) -> TcpSocket {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseport(true).unwrap();
    socket.bind(address).unwrap();
    socket
}

/// Aborting this drops the listener and, with the set, all connections.
async fn pass(listener: TcpListener, target: SocketAddr, is_mute: watch::Receiver<bool>) {
    let mut connections = JoinSet::new();
    loop {
        let (mut client, _) = listener.accept().await.unwrap();
        let mut is_mute = is_mute.clone();
        connections.spawn(async move {
            let talk = async {
                if let Ok(mut server) = TcpStream::connect(target).await {
                    // However it ends, both sides are closed; but not where it is broken off.
                    copy_bidirectional(&mut client, &mut server).await.ok();
                }
            };
            tokio::pin!(talk);
            tokio::select! {
                biased;
                true = async { is_mute.wait_for(|is_mute| *is_mute).await.is_ok() } => std::future::pending().await,
                () = &mut talk => {}
            }
        });
    }
}

//! A peer made by hand: it speaks the bytes of a lane without any of the engine's code, so that it can also lie.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed helper is a failed test")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use catga_codec::{CallId, Contract, Header, Kind, Message};

/// An endpoint that only who holds the listener takes, and where nobody answers before that.
pub(crate) fn listening() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = listener.local_addr().unwrap();
    (listener, endpoint)
}

const HEADER: usize = 48;

/// One end of a connection to an engine.
pub(crate) struct Peer {
    stream: TcpStream,
}

/// What the engine sent: the header, and what follows it.
pub(crate) type Frame = (Header, Vec<u8>);

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&(text.len() as u16).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

/// The payload of a Hello or Welcome, as the protocol's first page describes it.
pub(crate) fn greeting(cluster: &str, node: &str, offers: &[Contract]) -> Vec<u8> {
    let mut out = b"catga/ln".to_vec();
    for word in [1u16, 1, 0, 1, 0, 0] {
        out.extend_from_slice(&word.to_le_bytes());
    }
    for word in [1024 * 1024u32, 8192, offers.len() as u32] {
        out.extend_from_slice(&word.to_le_bytes());
    }
    out.extend_from_slice(&7u64.to_le_bytes()); // incarnation
    out.extend_from_slice(&[0; 16]); // nonce
    put_text(&mut out, cluster);
    put_text(&mut out, node);
    out.extend_from_slice(&0u32.to_le_bytes()); // extensions
    for offer in offers {
        out.extend_from_slice(&offer.id.0.to_le_bytes());
        out.extend_from_slice(&offer.fingerprint.to_le_bytes());
        out.extend_from_slice(&[offer.kind as u8, 1]);
        put_text(&mut out, offer.name);
        out.extend_from_slice(&0u16.to_le_bytes()); // fields
    }
    out
}

impl Peer {
    pub(crate) fn dial(endpoint: SocketAddr) -> Self {
        Self::on(TcpStream::connect(endpoint).unwrap())
    }

    /// Takes the connection that an engine makes to `listener`, and the greetings with it, as node `node`.
    pub(crate) fn welcome(listener: &TcpListener, node: &str, offers: &[Contract]) -> Self {
        let mut peer = Self::on(listener.accept().unwrap().0);
        let (hello, _) = peer.frame().expect("a Hello");
        assert_eq!(hello.kind, Kind::Hello);
        peer.send(Header::new(Kind::Welcome), &greeting("catga", node, offers));
        peer
    }

    /// Dials, and greets as node `node`.
    pub(crate) fn hello(endpoint: SocketAddr, cluster: &str, node: &str) -> Self {
        let mut peer = Self::dial(endpoint);
        peer.send(Header::new(Kind::Hello), &greeting(cluster, node, &[]));
        peer
    }

    fn on(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        Self { stream }
    }

    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        // The engine may have closed already: then the test sees that next.
        let _ = self.stream.write_all(bytes);
    }

    pub(crate) fn send(&mut self, header: Header, payload: &[u8]) {
        let length = HEADER + payload.len();
        let mut bytes = vec![0; length.next_multiple_of(16)];
        Header { length: length as u32, ..header }.write(&mut bytes);
        bytes[HEADER..length].copy_from_slice(payload);
        self.raw(&bytes);
    }

    /// Archives a message as the payload of a frame.
    pub(crate) fn say<M: Message>(&mut self, header: Header, message: &M) {
        let mut frame = catga_codec::OwnedFrame::with_capacity(4096);
        frame.encode(header, message).unwrap();
        let payload = frame.bytes()[HEADER..].to_vec();
        self.send(Header { message: M::ID, ..header }, &payload);
    }

    /// The next frame, or nothing if the engine has closed the connection.
    pub(crate) fn frame(&mut self) -> Option<Frame> {
        let mut header = [0; HEADER];
        self.stream.read_exact(&mut header).ok()?;
        let parsed = Header::read(&header).unwrap();
        let length = parsed.length as usize;
        let mut rest = vec![0; length.next_multiple_of(16) - HEADER];
        self.stream.read_exact(&mut rest).ok()?;
        rest.truncate(length - HEADER);
        Some((parsed, rest))
    }

    /// The next frame that is not a heartbeat.
    pub(crate) fn news(&mut self) -> Option<Frame> {
        loop {
            match self.frame()? {
                (header, _) if header.kind == Kind::Heartbeat => {}
                frame => return Some(frame),
            }
        }
    }

    /// Reads until the engine closes the connection, and says with which reason if it gave one.
    pub(crate) fn closed(&mut self) -> Option<u16> {
        let mut reason = None;
        while let Some((header, _)) = self.frame() {
            if header.kind == Kind::Close {
                reason = Some(header.code);
            }
        }
        reason
    }
}

/// The header of a request.
pub(crate) fn request(slot: u32) -> Header {
    let call = CallId::new(slot, 1);
    Header { call, remaining_us: 10_000_000, ..Header::new(Kind::Request) }
}

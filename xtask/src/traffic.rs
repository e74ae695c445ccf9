//! Traffic of scenarios, where the machine has no program for it: a server, clients that ask it, and one that floods it.
//!
//! Each runs in the network namespace it is started in until it is killed.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Subcommand, ValueEnum};
use nix::sys::socket::{self, AddressFamily, SockFlag, SockProtocol, SockType};

/// What a server says on its standard output once clients may come.
pub const READY: &str = "ready";

/// Between two questions of a client.
const PAUSE: Duration = Duration::from_millis(300);
/// How long a client waits for an answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long it waits for a connection: less than the second after which TCP would send its SYN again.
const CONNECTED: Duration = Duration::from_millis(900);
/// Beyond any segment: what a bulk sender hands to the kernel at once, bytes.
const BULK: usize = 128 * 1024;
/// Larger than any datagram, bytes.
const DATAGRAM: usize = 64 * 1024;

const QUESTION: &[u8] = b"GET / HTTP/1.1\r\nHost: podpath\r\nConnection: close\r\n\r\n";
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nok\n";

/// What to do.
#[derive(Debug, Clone, Subcommand)]
pub enum Traffic {
    /// Answer whoever comes: TCP in the way of HTTP, UDP with the same datagram
    Serve {
        /// Over what
        protocol: Protocol,
        /// On all addresses of both families
        port: u16,
    },
    /// Ask a server again and again, each time over a new connection
    Get {
        /// Over what
        protocol: Protocol,
        /// The server
        address: IpAddr,
        /// Its port
        port: u16,
        /// From this port each time, which only UDP can do
        #[arg(long, default_value_t = 0)]
        from: u16,
    },
    /// Read every packet of the namespace, as tcpdump does: the kernel clones each for that
    Sniff,
    /// Send over one TCP connection as much as goes
    Flood {
        /// The server
        address: IpAddr,
        /// Its port
        port: u16,
        /// At once, bytes
        #[arg(long, default_value_t = BULK)]
        bytes: usize,
        /// Between two of these, milliseconds
        #[arg(long, default_value_t = 0)]
        pause: u64,
    },
}

/// Transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Protocol {
    /// TCP
    Tcp,
    /// UDP
    Udp,
}

/// Does it, until killed.
///
/// # Errors
/// A port that is taken; for a flood, a server that is not there or goes away. A client goes on whatever happens.
pub fn run(traffic: &Traffic) -> Result<()> {
    match *traffic {
        Traffic::Serve { protocol: Protocol::Tcp, port } => serve_tcp(port),
        Traffic::Serve { protocol: Protocol::Udp, port } => serve_udp(port),
        Traffic::Get { protocol, address, port, from } => loop {
            // Refused, lost or answered: scenarios are about what the network does.
            let _ = get(protocol, SocketAddr::new(address, port), from);
            thread::sleep(PAUSE);
        },
        Traffic::Sniff => sniff(),
        Traffic::Flood { address, port, bytes, pause } => {
            flood(SocketAddr::new(address, port), bytes, Duration::from_millis(pause))
        }
    }
}

/// Of both families, unless the namespace has no IPv6.
fn bind<T>(port: u16, bind: impl Fn(SocketAddr) -> std::io::Result<T>) -> Result<T> {
    let both = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port);
    let ipv4 = SocketAddr::from(([0, 0, 0, 0], port));
    bind(both).or_else(|_| bind(ipv4)).with_context(|| format!("binding port {port}"))
}

fn serve_tcp(port: u16) -> Result<()> {
    let listener = bind(port, TcpListener::bind)?;
    println!("{READY}");
    for stream in listener.incoming() {
        let stream = stream.context("accepting a connection")?;
        // A client that goes away in the middle is no failure of the server's.
        thread::spawn(move || answer(stream));
    }
    Ok(())
}

/// Answers a question; takes anything else until it ends.
fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    let mut buffer = vec![0; BULK];
    let length = stream.read(&mut buffer)?;
    if buffer[..length].starts_with(b"GET ") {
        return stream.write_all(ANSWER);
    }
    while stream.read(&mut buffer)? > 0 {}
    Ok(())
}

fn serve_udp(port: u16) -> Result<()> {
    let socket = bind(port, UdpSocket::bind)?;
    println!("{READY}");
    let mut buffer = vec![0; DATAGRAM];
    loop {
        // An earlier answer that could not be delivered shows up here as an error.
        if let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..length], from);
        }
    }
}

fn get(protocol: Protocol, server: SocketAddr, from: u16) -> std::io::Result<()> {
    match protocol {
        Protocol::Tcp => {
            let mut stream = TcpStream::connect_timeout(&server, CONNECTED)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.write_all(QUESTION)?;
            stream.read_to_end(&mut Vec::new())?;
        }
        Protocol::Udp => {
            let any: SocketAddr = if server.is_ipv4() { ([0; 4], from).into() } else { ([0; 16], from).into() };
            let socket = UdpSocket::bind(any)?;
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.connect(server)?;
            socket.send(b"podpath?")?;
            socket.recv(&mut [0; 64])?;
        }
    }
    Ok(())
}

fn sniff() -> Result<()> {
    let all = SockProtocol::EthAll;
    let socket = socket::socket(AddressFamily::Packet, SockType::Raw, SockFlag::empty(), all)
        .context("opening a packet socket, which takes root")?;
    println!("{READY}");
    let mut buffer = vec![0; DATAGRAM];
    loop {
        nix::unistd::read(&socket, &mut buffer).context("reading a packet socket")?;
    }
}

fn flood(server: SocketAddr, bytes: usize, pause: Duration) -> Result<()> {
    let mut stream =
        TcpStream::connect_timeout(&server, PATIENCE).with_context(|| format!("connecting to {server}"))?;
    let block = vec![b'.'; bytes];
    loop {
        stream.write_all(&block).with_context(|| format!("sending to {server}"))?;
        thread::sleep(pause);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_answered_and_a_flood_is_swallowed() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = thread::spawn(move || {
            for _ in 0..2 {
                answer(listener.accept().unwrap().0).unwrap();
            }
        });
        get(Protocol::Tcp, address, 0).unwrap();
        let mut bulk = TcpStream::connect(address).unwrap();
        bulk.write_all(&vec![b'.'; 3 * BULK]).unwrap();
        drop(bulk);
        server.join().unwrap();
    }

    #[test]
    fn udp_comes_back() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = server.local_addr().unwrap();
        let thread = thread::spawn(move || {
            let mut buffer = [0; 64];
            let (length, from) = server.recv_from(&mut buffer).unwrap();
            server.send_to(&buffer[..length], from).unwrap();
        });
        get(Protocol::Udp, address, 0).unwrap();
        thread.join().unwrap();
    }
}

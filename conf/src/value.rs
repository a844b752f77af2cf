//! Values that have a form of their own in text: addresses and networks. Durations and sizes are in `quantity`.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

/// Where a socket is: `127.0.0.1:80`, `[::1]:80` or `unix:/run/app.sock`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Address {
    /// IPv4 or IPv6 with a port.
    Inet(SocketAddr),
    /// An absolute path.
    Unix(PathBuf),
}

/// A network in CIDR form, or every unix socket peer (`unix:`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IpNet {
    /// Addresses that share the first `prefix` bits of `address`.
    Cidr {
        /// The network.
        address: IpAddr,
        /// How many bits count.
        prefix: u8,
    },
    /// Peers of unix sockets.
    Unix,
}

/// Why a text is not a value of its kind, and what would be right.
///
/// Displayed as the message, then the hint on a line of its own: the form in which it crosses serde.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invalid {
    /// What is wrong.
    pub message: String,
    /// What would be right.
    pub hint: Option<String>,
}

/// The longest path of a unix socket, in bytes: `sun_path` less its closing NUL.
const UNIX_PATH_BYTES_MAX: usize = 107;

impl IpNet {
    /// Whether an address lies in the network. An IPv4 address mapped into IPv6 counts as the IPv4 address it carries.
    pub fn contains(&self, ip: IpAddr) -> bool {
        let IpNet::Cidr { address, prefix } = *self else { return false };
        let same_bits = match (address, ip.to_canonical()) {
            (IpAddr::V4(net), IpAddr::V4(ip)) => (net.to_bits() ^ ip.to_bits()).leading_zeros(),
            (IpAddr::V6(net), IpAddr::V6(ip)) => (net.to_bits() ^ ip.to_bits()).leading_zeros(),
            _ => return false,
        };
        same_bits >= u32::from(prefix)
    }
}

impl Invalid {
    pub(crate) fn new(message: impl Into<String>) -> Invalid {
        Invalid { message: message.into(), hint: None }
    }

    pub(crate) fn hint(self, hint: impl Into<String>) -> Invalid {
        Invalid { hint: Some(hint.into()), ..self }
    }
}

impl FromStr for Address {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Address, Invalid> {
        if let Some(path) = text.strip_prefix("unix:") {
            return unix(path);
        }
        match text.parse::<SocketAddr>() {
            Ok(address) if address.port() == 0 => {
                Err(Invalid::new("port 0 is no port").hint("a port is from 1 to 65535"))
            }
            Ok(address) => Ok(Address::Inet(address)),
            Err(_) => Err(not_an_address(text)),
        }
    }
}

fn unix(path: &str) -> Result<Address, Invalid> {
    if !path.starts_with('/') {
        return Err(Invalid::new("the path of a unix socket must be absolute").hint("write it as unix:/run/app.sock"));
    }
    if path.contains('\0') {
        return Err(Invalid::new("a path holds no NUL"));
    }
    if path.len() > UNIX_PATH_BYTES_MAX {
        return Err(Invalid::new(format!("the path of this unix socket has {} bytes", path.len()))
            .hint(format!("the kernel takes at most {UNIX_PATH_BYTES_MAX}")));
    }
    Ok(Address::Unix(PathBuf::from(path)))
}

/// Tells apart what people write in the place of an address, so that the hint fits.
fn not_an_address(text: &str) -> Invalid {
    let wrong = Invalid::new(format!("`{text}` is not an address"));
    if text.starts_with('/') {
        return wrong.hint(format!("a unix socket is written unix:{text}"));
    }
    if let Ok(ip) = text.parse::<IpAddr>() {
        let brackets = if ip.is_ipv6() { ", and brackets around the address" } else { "" };
        return wrong.hint(format!("a port is missing{brackets}: {}", SocketAddr::new(ip, 8080)));
    }
    let (host, port) = text.rsplit_once(':').unwrap_or(("", text));
    if port.parse::<u16>().is_err() {
        return wrong.hint("write 127.0.0.1:8080, [::1]:8080 or unix:/run/app.sock");
    }
    match host {
        "" | "*" => wrong.hint(format!("every address of the machine is 0.0.0.0:{port} (IPv4) or [::]:{port} (IPv6)")),
        "localhost" => wrong.hint(format!("write 127.0.0.1:{port} or [::1]:{port}")),
        _ if host.parse::<Ipv6Addr>().is_ok() => {
            wrong.hint(format!("an IPv6 address stands in brackets: [{host}]:{port}"))
        }
        _ => wrong.hint("host names are not looked up: write the IP address, as in 10.0.0.1:8080"),
    }
}

impl FromStr for IpNet {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<IpNet, Invalid> {
        if text == "unix:" {
            return Ok(IpNet::Unix);
        }
        let wrong = || {
            Invalid::new(format!("`{text}` is not a network"))
                .hint("write 10.0.0.0/8, 2001:db8::/32, a single address, or unix: for the peers of unix sockets")
        };
        let (address, prefix) = text.split_once('/').map_or((text, None), |(a, p)| (a, Some(p)));
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let width: u8 = if address.is_ipv4() { 32 } else { 128 };
        let prefix: u8 = prefix.map_or(Ok(width), str::parse).map_err(|_| wrong())?;
        if prefix > width {
            return Err(Invalid::new(format!("/{prefix} is more than the {width} bits of the address")));
        }
        match network(address, prefix) {
            net if net == address => Ok(IpNet::Cidr { address, prefix }),
            net => Err(Invalid::new(format!("`{text}` has bits set beyond /{prefix}"))
                .hint(format!("the network is {net}/{prefix}, the single address {address}"))),
        }
    }
}

/// The address with every bit after the prefix cleared.
fn network(address: IpAddr, prefix: u8) -> IpAddr {
    let prefix = u32::from(prefix);
    match address {
        IpAddr::V4(v4) => IpAddr::V4((v4.to_bits() & !u32::MAX.checked_shr(prefix).unwrap_or(0)).into()),
        IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() & !u128::MAX.checked_shr(prefix).unwrap_or(0)).into()),
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Inet(address) => address.fmt(f),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl fmt::Display for IpNet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            IpNet::Cidr { address, prefix } => write!(f, "{address}/{prefix}"),
            IpNet::Unix => f.write_str("unix:"),
        }
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        self.hint.as_ref().map_or(Ok(()), |hint| write!(f, "\n{hint}"))
    }
}

impl std::error::Error for Invalid {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_read_back_as_written() {
        for text in ["127.0.0.1:80", "[::1]:8080", "[::]:65535", "unix:/run/app.sock"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn a_wrong_address_says_what_is_right() {
        let table = [
            ("8080", "0.0.0.0:8080"),
            (":8080", "0.0.0.0:8080"),
            ("*:8080", "[::]:8080"),
            ("localhost:80", "127.0.0.1:80"),
            ("example.com:80", "not looked up"),
            ("::1:80", "brackets"),
            ("1:2:3:4:5:6:7:8:80", "[1:2:3:4:5:6:7:8]:80"),
            ("127.0.0.1", "127.0.0.1:8080"),
            ("::1", "[::1]:8080"),
            ("127.0.0.1:99999", "write 127.0.0.1:8080"),
            ("127.0.0.1:0", "from 1"),
            ("/run/app.sock", "unix:/run/app.sock"),
            ("unix:run/app.sock", "unix:/run/app.sock"),
            ("", "write 127.0.0.1:8080"),
        ];
        for (text, hint) in table {
            let invalid = text.parse::<Address>().unwrap_err();
            assert!(invalid.hint.as_ref().is_some_and(|h| h.contains(hint)), "{text}: {invalid}");
        }
        assert!(format!("unix:/{}", "a".repeat(107)).parse::<Address>().is_err());
        assert!("unix:/a\0b".parse::<Address>().is_err());
    }

    #[test]
    fn networks_contain_what_they_should() {
        let table = [
            ("10.0.0.0/8", "10.255.1.2", true),
            ("10.0.0.0/8", "11.0.0.0", false),
            ("10.0.0.0/8", "::ffff:10.1.1.1", true),
            ("0.0.0.0/0", "255.255.255.255", true),
            ("0.0.0.0/0", "::1", false),
            ("192.0.2.7", "192.0.2.7", true),
            ("192.0.2.7", "192.0.2.6", false),
            ("2001:db8::/32", "2001:db8:1::1", true),
            ("2001:db8::/32", "2001:db9::1", false),
            ("::/0", "::1", true),
            ("unix:", "127.0.0.1", false),
        ];
        for (net, ip, inside) in table {
            assert_eq!(net.parse::<IpNet>().unwrap().contains(ip.parse().unwrap()), inside, "{net} {ip}");
        }
    }

    #[test]
    fn wrong_networks_are_refused() {
        for text in ["10.0.0.1/8", "10.0.0.0/33", "10.0.0.0/", "10/8", "::/129", "example.com", "unix:/x", ""] {
            assert!(text.parse::<IpNet>().is_err(), "{text}");
        }
    }
}

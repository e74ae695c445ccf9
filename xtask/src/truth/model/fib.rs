//! Routes: read from what a lab gives to `ip route add`, and looked up as Linux does.

use anyhow::{Context, Result, bail};
use ipnet::Ipv4Net;
use std::net::Ipv4Addr;

/// What a route does with a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Unicast,
    Blackhole,
    Unreachable,
    Prohibit,
}

impl Kind {
    pub(super) fn word(self) -> &'static str {
        match self {
            Kind::Unicast => "unicast",
            Kind::Blackhole => "blackhole",
            Kind::Unreachable => "unreachable",
            Kind::Prohibit => "prohibit",
        }
    }
}

/// A route of table main.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) to: Ipv4Net,
    pub(super) kind: Kind,
    pub(super) via: Option<Ipv4Addr>,
    /// Empty unless unicast.
    pub(super) dev: String,
    pub(super) src: Option<Ipv4Addr>,
    protocol: Option<String>,
    scope: Option<String>,
    onlink: bool,
}

impl Route {
    /// What `ip route add` takes.
    pub(super) fn parse(text: &str) -> Result<Route> {
        let mut words = text.split_whitespace().peekable();
        let kind = match words.peek().copied() {
            Some("blackhole") => Kind::Blackhole,
            Some("unreachable") => Kind::Unreachable,
            Some("prohibit") => Kind::Prohibit,
            _ => Kind::Unicast,
        };
        if kind != Kind::Unicast {
            words.next();
        }
        let to = prefix(words.next().context("no destination")?)?;
        let mut route =
            Route { to, kind, via: None, dev: String::new(), src: None, protocol: None, scope: None, onlink: false };
        while let Some(word) = words.next() {
            if word == "onlink" {
                route.onlink = true;
                continue;
            }
            let value = words.next().with_context(|| format!("`{word}` without a value"))?;
            match word {
                "via" => route.via = Some(value.parse()?),
                "dev" => value.clone_into(&mut route.dev),
                "src" => route.src = Some(value.parse()?),
                "proto" => route.protocol = Some(if value == "12" { "bird".to_owned() } else { value.to_owned() }),
                "scope" => route.scope = Some(value.to_owned()),
                _ => bail!("the model knows no `{word}` of a route"),
            }
        }
        if kind == Kind::Unicast && route.via.is_none() && route.scope.is_none() {
            route.scope = Some("link".to_owned());
        }
        Ok(route)
    }

    /// The route that the kernel makes for an address with a prefix.
    pub(super) fn connected(address: Ipv4Net, dev: &str) -> Route {
        Route {
            to: address.trunc(),
            kind: Kind::Unicast,
            via: None,
            dev: dev.to_owned(),
            src: Some(address.addr()),
            protocol: Some("kernel".to_owned()),
            scope: Some("link".to_owned()),
            onlink: false,
        }
    }

    pub(super) fn is_of_host(&self) -> bool {
        self.scope.as_deref() == Some("host")
    }

    /// As `ip route` prints it.
    pub(super) fn text(&self, linkdown: bool) -> String {
        let mut text = match self.kind {
            Kind::Unicast => String::new(),
            kind => format!("{} ", kind.word()),
        };
        text.push_str(&match self.to.prefix_len() {
            0 => "default".to_owned(),
            32 => self.to.addr().to_string(),
            _ => self.to.to_string(),
        });
        let mut add = |word: &str, value: Option<String>| {
            if let Some(value) = value {
                text.push_str(&format!(" {word} {value}"));
            }
        };
        add("via", self.via.map(|via| via.to_string()));
        add("dev", Some(self.dev.clone()).filter(|dev| !dev.is_empty()));
        add("proto", self.protocol.clone());
        add("scope", self.scope.clone().filter(|scope| scope != "global"));
        add("src", self.src.map(|src| src.to_string()));
        for (there, word) in [(self.onlink, " onlink"), (linkdown, " linkdown")] {
            text.push_str(if there { word } else { "" });
        }
        text
    }
}

/// A prefix as `ip` takes one.
pub(super) fn prefix(text: &str) -> Result<Ipv4Net> {
    match text {
        "default" => Ok(Ipv4Net::default()),
        _ if text.contains('/') => text.parse().with_context(|| format!("`{text}` is no prefix")),
        _ => Ok(Ipv4Net::from(text.parse::<Ipv4Addr>().with_context(|| format!("`{text}` is no address"))?)),
    }
}

/// The route to an address: that of the longest prefix.
pub(super) fn lookup(routes: &[Route], to: Ipv4Addr) -> Option<&Route> {
    routes.iter().filter(|route| route.to.contains(&to)).max_by_key(|route| route.to.prefix_len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_are_written_as_ip_writes_them() {
        for (added, printed) in [
            ("blackhole 100.115.37.64/26 proto 12", "blackhole 100.115.37.64/26 proto bird"),
            ("10.0.0.1/32 dev cali1 scope link", "10.0.0.1 dev cali1 scope link"),
            ("10.0.0.1 dev cali1", "10.0.0.1 dev cali1 scope link"),
            ("default via 10.0.0.2 dev eth0", "default via 10.0.0.2 dev eth0"),
            ("10.1.0.0/16 via 10.0.0.2 dev eth0 proto 80 onlink", "10.1.0.0/16 via 10.0.0.2 dev eth0 proto 80 onlink"),
        ] {
            assert_eq!(Route::parse(added).unwrap().text(false), printed);
        }
        let connected = Route::connected("172.20.50.50/19".parse().unwrap(), "ens5");
        assert_eq!(connected.text(false), "172.20.32.0/19 dev ens5 proto kernel scope link src 172.20.50.50");
    }

    #[test]
    fn the_longest_prefix_wins() {
        let routes =
            ["default via 10.0.0.2 dev a", "10.1.0.0/16 dev b", "10.1.2.3 dev c"].map(|r| Route::parse(r).unwrap());
        let dev = |to: &str| lookup(&routes, to.parse().unwrap()).unwrap().dev.as_str();
        assert_eq!((dev("8.8.8.8"), dev("10.1.9.9"), dev("10.1.2.3")), ("a", "b", "c"));
    }
}

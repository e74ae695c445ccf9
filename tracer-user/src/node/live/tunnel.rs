//! How tunnel devices wrap packets, by `IFLA_INFO_DATA`.

use std::net::IpAddr;

use netlink_packet_route::link::{InfoData, InfoGeneve, InfoGre, InfoGre6, InfoIpTunnel, InfoVxlan};

use super::facts::TunnelSettings;

/// The settings, if the data are of a tunnel. WireGuard's are behind another protocol, which would tell its keys as well.
pub(super) fn settings(data: &InfoData) -> Option<TunnelSettings> {
    let mut settings = match data {
        InfoData::Vxlan(all) => vxlan(all),
        InfoData::Geneve(all) => geneve(all),
        InfoData::IpTunnel(all) => iptunnel(all),
        InfoData::GreTun(all) | InfoData::GreTap(all) => gre(all),
        InfoData::GreTun6(all) | InfoData::GreTap6(all) => gre6(all),
        _ => return None,
    };
    // 0.0.0.0 and :: stand for "not fixed", and a group is not one destination.
    settings.local = settings.local.filter(|address| !address.is_unspecified());
    settings.remote = settings.remote.filter(|address| !address.is_unspecified() && !address.is_multicast());
    Some(settings)
}

fn vxlan(all: &[InfoVxlan]) -> TunnelSettings {
    let mut settings = TunnelSettings::default();
    let mut external = false;
    for info in all {
        match info {
            InfoVxlan::Id(id) => settings.id = Some(*id),
            InfoVxlan::Local(address) => settings.local = Some(IpAddr::from(*address)),
            InfoVxlan::Local6(address) => settings.local = Some(IpAddr::from(*address)),
            InfoVxlan::Group(address) => settings.remote = Some(IpAddr::from(*address)),
            InfoVxlan::Group6(address) => settings.remote = Some(IpAddr::from(*address)),
            InfoVxlan::Port(port) => settings.port = Some(*port),
            InfoVxlan::CollectMetadata(on) => external = *on,
            _ => {}
        }
    }
    // Then whoever sends a packet names the network.
    settings.id = settings.id.filter(|_| !external);
    settings
}

fn geneve(all: &[InfoGeneve]) -> TunnelSettings {
    let mut settings = TunnelSettings::default();
    for info in all {
        match info {
            InfoGeneve::Id(id) => settings.id = Some(*id),
            InfoGeneve::Remote(address) => settings.remote = Some(IpAddr::from(*address)),
            InfoGeneve::Remote6(address) => settings.remote = Some(IpAddr::from(*address)),
            InfoGeneve::Local(address) => settings.local = Some(IpAddr::from(*address)),
            InfoGeneve::Local6(address) => settings.local = Some(IpAddr::from(*address)),
            InfoGeneve::Port(port) => settings.port = Some(*port),
            _ => {}
        }
    }
    settings
}

fn iptunnel(all: &[InfoIpTunnel]) -> TunnelSettings {
    let mut settings = TunnelSettings::default();
    for info in all {
        match info {
            InfoIpTunnel::Local(address) => settings.local = Some(*address),
            InfoIpTunnel::Remote(address) => settings.remote = Some(*address),
            _ => {}
        }
    }
    settings
}

fn gre(all: &[InfoGre]) -> TunnelSettings {
    let mut settings = TunnelSettings::default();
    for info in all {
        match info {
            InfoGre::Local(address) => settings.local = Some(IpAddr::from(*address)),
            InfoGre::Remote(address) => settings.remote = Some(IpAddr::from(*address)),
            _ => {}
        }
    }
    settings
}

fn gre6(all: &[InfoGre6]) -> TunnelSettings {
    let mut settings = TunnelSettings::default();
    for info in all {
        match info {
            InfoGre6::Local(address) => settings.local = Some(IpAddr::from(*address)),
            InfoGre6::Remote(address) => settings.remote = Some(IpAddr::from(*address)),
            _ => {}
        }
    }
    settings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_end_is_none() {
        let open = InfoData::IpTunnel(vec![
            InfoIpTunnel::Local("10.0.0.1".parse().unwrap()),
            InfoIpTunnel::Remote("0.0.0.0".parse().unwrap()),
        ]);
        let settings = settings(&open).unwrap();
        assert_eq!((settings.local, settings.remote), (Some("10.0.0.1".parse().unwrap()), None));
    }

    #[test]
    fn an_external_vxlan_has_no_network_of_its_own() {
        let data = |external| {
            InfoData::Vxlan(vec![InfoVxlan::Id(7), InfoVxlan::Port(4789), InfoVxlan::CollectMetadata(external)])
        };
        assert_eq!(settings(&data(false)).unwrap().id, Some(7));
        let external = settings(&data(true)).unwrap();
        assert_eq!((external.id, external.port), (None, Some(4789)));
    }
}

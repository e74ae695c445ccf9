use super::*;

fn route(prefix: &str, table: u32, metric: u32, kind: RouteType) -> RouteMessage {
    let net: IpNet = prefix.parse().unwrap();
    let mut route = RouteMessage::default();
    route.header.address_family = family(net.addr());
    route.header.destination_prefix_length = net.prefix_len();
    route.header.kind = kind;
    route.attributes.push(RouteAttribute::Destination(net.addr().into()));
    route.attributes.push(RouteAttribute::Table(table));
    route.attributes.push(RouteAttribute::Priority(metric));
    route
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn rule(priority: u32, action: RuleAction, attributes: &[RuleAttribute]) -> RuleMessage {
    let mut rule = RuleMessage::default();
    rule.header.action = action;
    rule.attributes.push(RuleAttribute::Priority(priority));
    rule.attributes.extend_from_slice(attributes);
    rule
}

fn packet(src: &str, dst: &str) -> Packet<'static> {
    Packet { src: src.parse().unwrap(), dst: dst.parse().unwrap(), iif: "lo", mark: 0 }
}

/// Prefix and type of the route that decides.
fn by_route(rules: &[RuleMessage], routes: &[RouteMessage], packet: &Packet<'_>) -> Option<(String, RouteType)> {
    match decide(rules, routes, packet)? {
        Decision::Route(route) => Some((destination(route).unwrap().to_string(), route.header.kind)),
        Decision::Rule(_) => None,
    }
}

fn main_routes() -> Vec<RouteMessage> {
    vec![
        route("0.0.0.0/0", TABLE_MAIN, 0, RouteType::Unicast),
        route("100.115.37.64/26", TABLE_MAIN, 0, RouteType::BlackHole),
        route("100.115.37.81/32", TABLE_MAIN, 0, RouteType::Unicast),
        route("100.115.37.64/32", TABLE_LOCAL, 0, RouteType::Local),
    ]
}

#[test]
fn the_longest_prefix_wins() {
    let (rules, routes) = (default_rules(AddressFamily::Inet), main_routes());
    let to = |dst| by_route(&rules, &routes, &packet("10.0.0.1", dst)).unwrap();
    assert_eq!(to("100.115.37.81"), ("100.115.37.81/32".into(), RouteType::Unicast));
    assert_eq!(to("100.115.37.90"), ("100.115.37.64/26".into(), RouteType::BlackHole));
    assert_eq!(to("100.115.37.64"), ("100.115.37.64/32".into(), RouteType::Local));
    assert_eq!(to("8.8.8.8"), ("0.0.0.0/0".into(), RouteType::Unicast));
}

#[test]
fn the_lowest_metric_wins_then_the_first() {
    let rules = default_rules(AddressFamily::Inet);
    let routes = [
        route("10.0.0.0/8", TABLE_MAIN, 20, RouteType::Unicast),
        route("10.0.0.0/8", TABLE_MAIN, 10, RouteType::Unreachable),
        route("10.0.0.0/8", TABLE_MAIN, 10, RouteType::Prohibit),
    ];
    assert_eq!(by_route(&rules, &routes, &packet("1.1.1.1", "10.1.1.1")).unwrap().1, RouteType::Unreachable);
}

#[test]
fn nothing_matches_nothing() {
    let rules = default_rules(AddressFamily::Inet);
    assert_eq!(decide(&rules, &[], &packet("1.1.1.1", "10.1.1.1")), None);
    assert_eq!(decide(&[], &main_routes(), &packet("1.1.1.1", "10.1.1.1")), None);
}

#[test]
fn a_mark_selects_a_table() {
    let mut rules = vec![rule(
        100,
        RuleAction::ToTable,
        &[RuleAttribute::FwMark(0x100), RuleAttribute::FwMask(0xf00), RuleAttribute::Table(7)],
    )];
    rules.extend(default_rules(AddressFamily::Inet));
    let mut routes = main_routes();
    routes.push(route("8.0.0.0/8", 7, 0, RouteType::Prohibit));
    let with = |mark| by_route(&rules, &routes, &Packet { mark, ..packet("10.0.0.1", "8.8.8.8") }).unwrap().1;
    assert_eq!(with(0x100), RouteType::Prohibit);
    assert_eq!(with(0xff_f1ff & !0xe00), RouteType::Prohibit, "bits outside the mask do not count");
    assert_eq!(with(0), RouteType::Unicast);
    assert_eq!(with(0x300), RouteType::Unicast);
}

#[test]
fn from_to_and_iif_must_all_match_and_not_turns_it_round() {
    let mut chosen = rule(
        100,
        RuleAction::ToTable,
        &[
            RuleAttribute::Source("10.1.0.0".parse().unwrap()),
            RuleAttribute::Destination("8.0.0.0".parse().unwrap()),
            RuleAttribute::Iifname("cali1".into()),
            RuleAttribute::Table(7),
        ],
    );
    (chosen.header.src_len, chosen.header.dst_len) = (16, 8);
    let routes = [route("0.0.0.0/0", 7, 0, RouteType::Unicast)];
    let matches = |rule: &RuleMessage, src, dst, iif| {
        decide(std::slice::from_ref(rule), &routes, &Packet { iif, ..packet(src, dst) }).is_some()
    };
    assert!(matches(&chosen, "10.1.2.3", "8.8.8.8", "cali1"));
    assert!(!matches(&chosen, "10.2.2.3", "8.8.8.8", "cali1"));
    assert!(!matches(&chosen, "10.1.2.3", "9.8.8.8", "cali1"));
    assert!(!matches(&chosen, "10.1.2.3", "8.8.8.8", "lo"));
    chosen.header.flags = RuleFlags::Invert;
    assert!(!matches(&chosen, "10.1.2.3", "8.8.8.8", "cali1"));
    assert!(matches(&chosen, "10.2.2.3", "8.8.8.8", "cali1"));
}

#[test]
fn throw_and_suppressed_routes_send_on_to_the_next_rule() {
    let routes = [
        route("8.0.0.0/8", 7, 0, RouteType::Throw),
        route("0.0.0.0/0", 8, 0, RouteType::Unicast),
        route("0.0.0.0/0", 9, 0, RouteType::Prohibit),
    ];
    let rules = [
        rule(1, RuleAction::ToTable, &[RuleAttribute::Table(7)]),
        rule(2, RuleAction::ToTable, &[RuleAttribute::Table(8), RuleAttribute::SuppressPrefixLen(0)]),
        rule(3, RuleAction::ToTable, &[RuleAttribute::Table(9)]),
    ];
    assert_eq!(by_route(&rules, &routes, &packet("1.1.1.1", "8.8.8.8")).unwrap().1, RouteType::Prohibit);
}

#[test]
fn goto_passes_over_rules_and_a_rule_can_end_the_lookup() {
    let routes = [route("0.0.0.0/0", 7, 0, RouteType::Unicast)];
    let rules = [
        rule(1, RuleAction::Goto, &[RuleAttribute::Goto(5)]),
        rule(2, RuleAction::ToTable, &[RuleAttribute::Table(7)]),
        rule(5, RuleAction::Prohibit, &[]),
        rule(6, RuleAction::ToTable, &[RuleAttribute::Table(7)]),
    ];
    assert_eq!(decide(&rules, &routes, &packet("1.1.1.1", "8.8.8.8")), Some(Decision::Rule(&rules[2])));
}

#[test]
fn what_the_question_does_not_tell_does_not_match() {
    let routes = [route("0.0.0.0/0", 7, 0, RouteType::Unicast)];
    for asked in [
        RuleAttribute::Oifname("ens5".into()),
        RuleAttribute::IpProtocol(6.into()),
        RuleAttribute::L3MDev(true),
        RuleAttribute::TunId(9),
    ] {
        let rules = [rule(1, RuleAction::ToTable, &[RuleAttribute::Table(7), asked.clone()])];
        assert_eq!(decide(&rules, &routes, &packet("1.1.1.1", "8.8.8.8")), None, "{asked:?}");
    }
}

#[test]
fn ipv6_takes_the_longest_match_too() {
    let rules = default_rules(AddressFamily::Inet6);
    let routes = [
        route("::/0", TABLE_MAIN, 1024, RouteType::Unicast),
        route("2001:db8::/32", TABLE_MAIN, 1024, RouteType::BlackHole),
    ];
    assert_eq!(by_route(&rules, &routes, &packet("fd00::1", "2001:db8::7")).unwrap().1, RouteType::BlackHole);
    assert_eq!(by_route(&rules, &routes, &packet("fd00::1", "2001:db9::7")).unwrap().1, RouteType::Unicast);
}

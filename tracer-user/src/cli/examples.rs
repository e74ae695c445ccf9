//! What the help of each command shows below its options.

pub(super) const EXAMPLES: &str = "\
Examples:
  podpath trace bb2 bb1     the path of five pings from pod bb2 to pod bb1 and back
  podpath doctor            what can be traced on this machine
  podpath nodes             every node, and what can be traced there
  podpath install           agents for every node of the Kubernetes cluster in your kubeconfig

Exit codes: 0 every exchange completed; 1 could not trace; 2 wrong usage;
3 traced, and at least one exchange did not complete (dropped, rejected, lost)";

pub(super) const TRACE_EXAMPLES: &str = "\
Examples:
  podpath trace bb2 bb1                  from pod bb2 to pod bb1
  podpath trace shop/web 8.8.8.8         from a pod of namespace shop to an address
  podpath trace bb2 bb1 -c 20 -i 0.05    twenty probes, one every 50 ms
  podpath trace bb2 bb1 -o json          for programs
  podpath trace bb2 web --tcp 80         a SYN to port 80: open, refused or filtered, and where
  podpath trace bb2 dns --udp 53         a datagram; a server that makes nothing of it stays silent
  podpath trace bb2 svc/web              a service's only port: which endpoint, through which NAT
  podpath trace bb2 node-1:30080         a node port, the same as node-1 --tcp 30080
  podpath trace 203.0.113.9 node-1:30080 what a client outside of the cluster sends there
  podpath trace bb2 bb1 -6               between the IPv6 addresses of two pods that have both
  podpath trace bb2 bb1 --passive        send nothing: wait for pings that others send
  podpath trace bb2 web --passive --tcp 80    watch handshakes and data of others

  podpath trace -n shop deploy/web db-0  one of a workload's pods
  podpath trace bb1 8.8.8.8 --ephemeral  in a cluster where podpath is not installed

Names: POD, NAMESPACE/POD, pod/POD, node/NODE, svc/SERVICE (as destination), an address; in a cluster deploy/NAME, sts/NAME, ds/NAME,
rs/NAME and job/NAME too; the destination may be a host name. The nodes come from the cluster of --kubeconfig,
--context or $KUBECONFIG; else from a lab that runs here; else from the cluster of ~/.kube/config. Without
Kubernetes they come from an inventory file:
  identity = \"cluster.yaml\"    # kubectl get pods,nodes,services,endpointslices,netpol -A -o yaml
  [[node]]
  name = \"node-1\"
  command = [\"ssh\", \"node-1\", \"sudo\", \"podpath-agent\", \"session\"]

Exit codes: 0 every exchange completed; 1 could not trace; 2 wrong usage;
3 traced, and at least one exchange did not complete (dropped, rejected, lost)";

pub(super) const WATCH_EXAMPLES: &str = "\
Examples:
  podpath watch shop/web svc/db            a service's only port: its segments, round trips and losses, each second
  podpath watch bb2 bb1                    pings that others send
  podpath watch bb2 web --tcp 80

Nothing is sent. q quits, space freezes. Names and nodes are those of `podpath trace`.

Exit codes: 0 watched; 1 could not watch; 2 wrong usage";

pub(super) const RECORD_EXAMPLES: &str = "\
Examples:
  podpath record shop/web svc/db --tcp 5432 -w slow.ppr    a minute of a service's live traffic
  podpath record bb2 bb1 --for 5m -w pings.ppr             five minutes of pings that others send
  podpath report slow.ppr                                  what it shows

Nothing is sent. Names and nodes are those of `podpath trace`.

Exit codes: 0 recorded; 1 could not record; 2 wrong usage; 3 recorded, but nothing was seen, or not all could be written";

pub(super) const REPORT_EXAMPLES: &str = "\
Examples:
  podpath report slow.ppr               where the time went
  podpath report slow.ppr --slowest 5   the five slowest exchanges, hop by hop
  podpath report slow.ppr --against good.ppr    what changed, and where
  podpath report slow.ppr -o json       for programs, with the distributions (HdrHistogram)

Exit codes: 0 reported; 1 a file cannot be read; 2 wrong usage; 3 reported, but exchanges did not complete, or with
--against something changed";

pub(super) const CONVERT_EXAMPLES: &str = "\
Examples:
  podpath convert slow.ppr --to jsonl > slow.jsonl       an exchange a line, as `podpath trace -o json` has them
  podpath convert slow.ppr --to pcapng -w slow.pcapng    a packet for each time one was seen; its hops are its comments
  tshark -r slow.pcapng -T fields -e frame.interface_name -e frame.comment

Exit codes: 0 converted; 1 a file cannot be read or written; 2 wrong usage";

pub(super) const DOCTOR_EXAMPLES: &str = "\
Examples:
  sudo podpath doctor
  ip netns exec node1 podpath doctor
  podpath doctor -o json    # for programs

Exit codes: 0 tracing works here; 1 it does not";

pub(super) const NODES_EXAMPLES: &str = "\
Examples:
  podpath nodes                      of the cluster in your kubeconfig, or of the lab that runs here
  podpath nodes node-1 node-2        these only
  podpath nodes -o wide              with addresses, agents' pods and operating systems
  podpath nodes -o json              for programs, with every check

Each agent looks at its own node's kernel: what `podpath doctor` shows there.

Exit codes: 0 all of them can be traced; 1 not all; 2 wrong usage";

pub(super) const INSTALL_EXAMPLES: &str = "\
Examples:
  podpath install                              into the current context of your kubeconfig
  podpath install --no-inject                  agents that only watch
  podpath install --image registry.example/podpath-agent:0.1.0
  podpath install --dry-run -o yaml            print what would be applied
  podpath uninstall                            take all of it out again

The image is in no registry. In podpath's sources `cargo xtask image` builds it as an archive, which a node takes by
  ctr -n k8s.io images import podpath-agent-0.1.0-amd64.tar
  kind load image-archive podpath-agent-0.1.0-amd64.tar      (kind's nodes)
  docker load -i podpath-agent-0.1.0-amd64.tar               (then tag and push it for --image)

It can be repeated, and then brings the cluster to what this version and these options say.

Exit codes: 0 agents are ready on all nodes; 1 they are not; 2 wrong usage";

pub(super) const COMPLETION_EXAMPLES: &str = "\
Examples:
  source <(podpath completion bash)
  podpath completion zsh > \"${fpath[1]}/_podpath\"
  podpath completion fish > ~/.config/fish/completions/podpath.fish";

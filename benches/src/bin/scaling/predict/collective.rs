//! The time of an all-reduce as latency plus bytes over bandwidth, for each algorithm and protocol. Pure.
//!
//! Source: NCCL, `src/graph/tuning.cc`, including the corrections of its model.

use super::cluster::{Algorithm, Cluster, Nvls, Protocols};

/// The estimated time of an all-reduce.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    /// Seconds from start to end.
    pub seconds: f64,
    /// The algorithm and protocol that take this time.
    pub way: &'static str,
}

/// One of NCCL's protocols, and the share of the bandwidth that a ring and a tree achieve with it.
#[derive(Clone, Copy)]
struct Protocol {
    latency: fn(&Protocols) -> f64,
    ring_share: f64,
    tree_share: f64,
    /// Correction factors by powers of two from 64 bytes: trees fall short of the model at medium sizes.
    tree_correction: [f64; 22],
    ring_name: &'static str,
    tree_name: &'static str,
}

const PROTOCOLS: [Protocol; 3] = [
    Protocol {
        latency: |p| p.ll,
        ring_share: 0.25,
        tree_share: 0.9 / 3.8,
        tree_correction: [
            1.0, 1.0, 1.0, 1.0, 0.9, 0.8, 0.7, 0.7, 0.7, 0.7, 0.6, 0.5, 0.4, 0.4, 0.5, 0.6, 0.7,
            0.8, 0.9, 1.0, 1.0, 1.0,
        ],
        ring_name: "ring, LL",
        tree_name: "tree, LL",
    },
    Protocol {
        latency: |p| p.ll128,
        ring_share: 0.92,
        tree_share: 0.9 * 0.915,
        tree_correction: [
            1.0, 1.0, 1.0, 1.0, 1.0, 0.9, 0.8, 0.8, 0.8, 0.7, 0.6, 0.6, 0.6, 0.5, 0.6, 0.6, 0.7,
            0.7, 0.8, 0.9, 0.9, 1.0,
        ],
        ring_name: "ring, LL128",
        tree_name: "tree, LL128",
    },
    Protocol {
        latency: |p| p.simple,
        ring_share: 1.0,
        tree_share: 0.9,
        tree_correction: [
            0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9, 0.8, 0.7, 0.6, 0.6, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5,
            0.6, 0.6, 0.7, 0.8, 0.9,
        ],
        ring_name: "ring, Simple",
        tree_name: "tree, Simple",
    },
];

/// Ranks on a cluster, on as few nodes as possible.
#[derive(Debug, Clone, Copy)]
pub struct Group<'a> {
    cluster: &'a Cluster,
    ranks: usize,
    nodes: usize,
}

impl<'a> Group<'a> {
    /// Creates a group of `ranks` ranks.
    pub fn new(cluster: &'a Cluster, ranks: usize) -> Self {
        Self { cluster, ranks, nodes: ranks.div_ceil(cluster.gpus_per_node) }
    }

    /// Estimates the all-reduce of `bytes` by the fastest of the cluster's algorithms.
    pub fn all_reduce(&self, bytes: f64) -> Estimate {
        let none = Estimate { seconds: 0.0, way: "nothing to do" };
        if self.ranks < 2 || bytes <= 0.0 {
            return none;
        }
        let ways = self.cluster.algorithms.iter().flat_map(|way| self.ways(*way, bytes));
        ways.min_by(|a, b| a.seconds.total_cmp(&b.seconds)).unwrap_or(none)
    }

    fn ways(&self, algorithm: Algorithm, bytes: f64) -> Vec<Estimate> {
        let by_protocol = |way: &dyn Fn(&Protocol) -> Estimate| PROTOCOLS.iter().map(way).collect();
        match (algorithm, &self.cluster.nvls) {
            (Algorithm::Ring, _) => by_protocol(&|protocol| self.ring(protocol, bytes)),
            (Algorithm::Tree, _) => by_protocol(&|protocol| self.tree(protocol, bytes)),
            (Algorithm::Nvls, Some(nvls)) if self.nodes == 1 => vec![self.nvls(nvls, bytes)],
            (Algorithm::Hierarchical, _) if self.nodes > 1 => vec![self.hierarchical(bytes)],
            _ => Vec::new(),
        }
    }

    /// Returns the bandwidth of a ring through all ranks, which is that of its slowest link.
    fn bus_bytes_per_s(&self) -> f64 {
        let intra = self.cluster.intra_bus_gb_per_s.value;
        let inter = self.cluster.inter_gb_per_s.value;
        let slowest = match self.nodes {
            1 => intra,
            _ if self.cluster.gpus_per_node == 1 => inter,
            _ => intra.min(inter),
        };
        slowest * 1e9
    }

    fn ring(&self, protocol: &Protocol, bytes: f64) -> Estimate {
        let cluster = self.cluster;
        let latency = |protocols: &Protocols| (protocol.latency)(protocols);
        let (ranks, nodes) = (self.ranks as f64, self.nodes as f64);
        let hops = 2.0 * (ranks - 1.0);
        let between_nodes = 2.0 * (nodes - 1.0);
        let is_short = protocol.ring_name == "ring, LL";
        let intra_factor = if self.nodes > 1 && is_short { 1.8 } else { 1.0 };
        let mut micros = latency(&cluster.base_us)
            + (hops - between_nodes) * latency(&cluster.intra_hop_us) * intra_factor
            + between_nodes * latency(&cluster.inter_hop_us);
        // NCCL's plateau: a ring over nodes is long but not yet saturated.
        let is_plateau = self.nodes > 1 && bytes >= ranks / 16.0 * 65536.0;
        if is_plateau && protocol.ring_name == "ring, Simple" {
            micros *= 1.9;
        }
        let bandwidth = self.bus_bytes_per_s() * protocol.ring_share * ranks / hops;
        Estimate { seconds: micros / 1e6 + bytes / bandwidth, way: protocol.ring_name }
    }

    fn tree(&self, protocol: &Protocol, bytes: f64) -> Estimate {
        let cluster = self.cluster;
        let latency = |protocols: &Protocols| (protocol.latency)(protocols);
        let (ranks, nodes) = (self.ranks as f64, self.nodes as f64);
        let micros = latency(&cluster.base_us)
            + 2.0
                * ((ranks / nodes - 1.0) * latency(&cluster.intra_tree_hop_us)
                    + nodes.log2().floor() * latency(&cluster.inter_tree_hop_us));
        let size = (bytes / 64.0).max(1.0).log2() as usize;
        let correction = protocol.tree_correction.get(size).copied().unwrap_or(1.0);
        let bandwidth = self.bus_bytes_per_s() * protocol.tree_share * correction / 2.0;
        Estimate { seconds: micros / 1e6 + bytes / bandwidth, way: protocol.tree_name }
    }

    fn nvls(&self, nvls: &Nvls, bytes: f64) -> Estimate {
        let ranks = self.ranks as f64;
        let bandwidth = nvls.bus_gb_per_s.value * 1e9 * ranks / (2.0 * (ranks - 1.0));
        let seconds = nvls.latency_us.value / 1e6 + bytes / bandwidth;
        Estimate { seconds, way: "NVLS" }
    }

    /// Estimates the hierarchical all-reduce, in which each GPU of a node sends its part over the network,
    /// concurrently with the others.
    fn hierarchical(&self, bytes: f64) -> Estimate {
        let cluster = self.cluster;
        let nodes = self.nodes as f64;
        let gpus = self.ranks as f64 / nodes;
        let micros = 3.0 * cluster.base_us.simple
            + 2.0 * (gpus - 1.0) * cluster.intra_hop_us.simple
            + 2.0 * (nodes - 1.0) * cluster.inter_hop_us.simple;
        let within = 2.0 * (gpus - 1.0) / gpus * bytes / (cluster.intra_bus_gb_per_s.value * 1e9);
        let between = 2.0 * (nodes - 1.0) / nodes * bytes / (cluster.inter_gb_per_s.value * 1e9);
        Estimate { seconds: micros / 1e6 + within + between, way: "hierarchical" }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn h100() -> Cluster {
        Cluster::load("h100-nvlink-ib400").unwrap()
    }

    #[test]
    fn a_ring_in_a_node_is_latency_and_hops_and_bytes() {
        let mut cluster = h100();
        cluster.algorithms = vec![Algorithm::Ring];
        // 8.4 + 14 * 3.4 us, and 2 * 7/8 of the bytes at 365 GB/s.
        let estimate = Group::new(&cluster, 8).all_reduce(1e9);
        let expected = (8.4 + 14.0 * 3.4) / 1e6 + 1.75 / 365.0;
        assert_eq!(estimate.way, "ring, Simple");
        assert!((estimate.seconds / expected - 1.0).abs() < 1e-9, "{estimate:?}");
        // 6.6 + 14 * 0.6 us.
        let short = Group::new(&cluster, 8).all_reduce(8.0);
        assert_eq!(short.way, "ring, LL");
        assert!((short.seconds - 15e-6).abs() < 1e-8, "{short:?}");
    }

    #[test]
    fn long_messages_in_a_node_are_reduced_in_the_switch_and_many_nodes_take_trees() {
        let cluster = h100();
        assert_eq!(Group::new(&cluster, 8).all_reduce(256e6).way, "NVLS");
        assert!(Group::new(&cluster, 512).all_reduce(1e6).way.starts_with("tree"));
        assert!(Group::new(&cluster, 16).all_reduce(1e9).way.starts_with("ring"));
    }

    #[test]
    fn more_bytes_and_more_nodes_take_longer() {
        let cluster = h100();
        let mut last = 0.0;
        for bytes in (0..24).map(|power| f64::from(1 << power) * 64.0) {
            let seconds = Group::new(&cluster, 64).all_reduce(bytes).seconds;
            // Where one way takes over from another, the model may dip a little.
            assert!(seconds > 0.8 * last, "{bytes}");
            last = seconds;
        }
        let over = |ranks| Group::new(&cluster, ranks).all_reduce(25e6).seconds;
        assert!(over(8) < over(16) && over(16) < over(64) && over(64) < over(512));
        assert_eq!(over(1), 0.0);
    }

    #[test]
    fn hierarchy_helps_where_the_network_is_the_narrow_part() {
        let mut cluster = h100();
        cluster.inter_gb_per_s.value = 12.5;
        cluster.algorithms = vec![Algorithm::Ring];
        let ring = Group::new(&cluster, 512).all_reduce(100e6).seconds;
        cluster.algorithms = vec![Algorithm::Hierarchical];
        assert!(Group::new(&cluster, 512).all_reduce(100e6).seconds < ring);
    }
}

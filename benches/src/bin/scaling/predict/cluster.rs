//! Clusters, each a YAML file whose figures name their source.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::error::{BenchError, Result};

/// GPUs and their interconnect.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cluster {
    /// Description in words.
    pub description: String,
    /// Number of GPUs in a node.
    pub gpus_per_node: usize,
    /// Algorithms from which its library may choose.
    pub algorithms: Vec<Algorithm>,
    /// Bus bandwidth of a ring within a node, as nccl-tests define it.
    pub intra_bus_gb_per_s: Figure,
    /// Latency from one GPU to the next in a ring within a node.
    pub intra_hop_us: Protocols,
    /// Latency from one GPU to the next in a tree within a node.
    pub intra_tree_hop_us: Protocols,
    /// Usable bandwidth of a node's network in one direction, over all its cards.
    pub inter_gb_per_s: Figure,
    /// Latency from one node to the next in a ring.
    pub inter_hop_us: Protocols,
    /// Latency from one node to the next in a tree.
    pub inter_tree_hop_us: Protocols,
    /// Latency before the first hop.
    pub base_us: Protocols,
    /// All-reduce in the switch of a node, if it has one.
    pub nvls: Option<Nvls>,
    /// Share of its speed that a GPU loses while it communicates.
    pub slowdown_while_communicating: Figure,
    /// Share by which a step takes longer as soon as ranks communicate, whatever they do.
    pub step_overhead: Figure,
    /// Standard deviation of the time of a rank's step, as a share of it: the slowest of many ranks sets the
    /// pace.
    pub step_noise: Figure,
}

/// All-reduce in a switch: NVLink SHARP.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nvls {
    /// Bus bandwidth, as nccl-tests define it.
    pub bus_gb_per_s: Figure,
    /// Latency before the first byte.
    pub latency_us: Figure,
}

/// A number with its uncertainty and source.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Figure {
    /// The number.
    pub value: f64,
    /// Relative uncertainty, in [0, 1).
    pub uncertainty: f64,
    /// Source of the number; "assumed" where there is none.
    pub source: String,
}

/// Latencies of NCCL's protocols in microseconds, with their source.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Protocols {
    /// Latency of the protocol for short messages.
    pub ll: f64,
    /// Latency of the protocol for medium messages.
    pub ll128: f64,
    /// Latency of the protocol for long messages.
    pub simple: f64,
    /// Relative uncertainty, in [0, 1).
    pub uncertainty: f64,
    /// Source of the latencies.
    pub source: String,
}

/// Algorithm of an all-reduce.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Algorithm {
    /// From each GPU to the next, twice around.
    Ring,
    /// A chain in each node, a double binary tree over nodes.
    Tree,
    /// NVLink SHARP, in the switch of a node.
    Nvls,
    /// Reduce-scatter in each node, rings over nodes, all-gather in each node.
    Hierarchical,
}

impl Cluster {
    /// Loads a cluster by its name in `benches/clusters`, or from a file.
    ///
    /// # Errors
    /// When there is no such cluster, or its file is invalid.
    pub fn load(name: &str) -> Result<Self> {
        let path = path_of(name);
        let text = std::fs::read_to_string(&path).map_err(|source| BenchError::Cluster {
            path: path.clone(),
            problem: format!("{source}; known clusters: {}", names().join(", ")),
        })?;
        Self::parse(&text).map_err(|problem| BenchError::Cluster { path, problem })
    }

    fn parse(text: &str) -> std::result::Result<Self, String> {
        let cluster: Self = serde_yaml::from_str(text).map_err(|error| error.to_string())?;
        let figures = cluster.figures();
        if let Some((name, _)) = figures.iter().find(|(_, figure)| figure.source.trim().is_empty())
        {
            return Err(format!("{name} has no source"));
        }
        let is_bad = |figure: &Figure| {
            let Figure { value, uncertainty, .. } = figure;
            !value.is_finite() || *value < 0.0 || !(0.0..1.0).contains(uncertainty)
        };
        if let Some((name, figure)) = figures.iter().find(|(_, figure)| is_bad(figure)) {
            return Err(format!(
                "{name}: {} with an uncertainty of {} is out of range: the value must be finite \
                 and not negative, the uncertainty in [0, 1)",
                figure.value, figure.uncertainty
            ));
        }
        if cluster.gpus_per_node == 0 || cluster.algorithms.is_empty() {
            return Err(
                "gpus_per_node must be at least 1, and algorithms must not be empty".to_owned()
            );
        }
        Ok(cluster)
    }

    /// Returns all figures by name; of latencies, those of the `simple` protocol.
    pub fn figures(&self) -> BTreeMap<&'static str, Figure> {
        let latency = |protocols: &Protocols| Figure {
            value: protocols.simple,
            uncertainty: protocols.uncertainty,
            source: protocols.source.clone(),
        };
        let mut figures = BTreeMap::from([
            ("intra_bus_gb_per_s", self.intra_bus_gb_per_s.clone()),
            ("inter_gb_per_s", self.inter_gb_per_s.clone()),
            ("slowdown_while_communicating", self.slowdown_while_communicating.clone()),
            ("step_overhead", self.step_overhead.clone()),
            ("step_noise", self.step_noise.clone()),
            ("intra_hop_us", latency(&self.intra_hop_us)),
            ("intra_tree_hop_us", latency(&self.intra_tree_hop_us)),
            ("inter_hop_us", latency(&self.inter_hop_us)),
            ("inter_tree_hop_us", latency(&self.inter_tree_hop_us)),
            ("base_us", latency(&self.base_us)),
        ]);
        if let Some(nvls) = &self.nvls {
            figures.insert("nvls.bus_gb_per_s", nvls.bus_gb_per_s.clone());
            figures.insert("nvls.latency_us", nvls.latency_us.clone());
        }
        figures
    }

    /// Returns the cluster with every figure off by `part` of its uncertainty, for the worse where `part` is
    /// positive.
    pub fn off_by(&self, part: f64) -> Self {
        let mut cluster = self.clone();
        let faster = |figure: &mut Figure| figure.value *= 1.0 - part * figure.uncertainty;
        let slower = |figure: &mut Figure| figure.value *= 1.0 + part * figure.uncertainty;
        let later = |protocols: &mut Protocols| {
            let factor = 1.0 + part * protocols.uncertainty;
            protocols.ll *= factor;
            protocols.ll128 *= factor;
            protocols.simple *= factor;
        };
        faster(&mut cluster.intra_bus_gb_per_s);
        faster(&mut cluster.inter_gb_per_s);
        slower(&mut cluster.slowdown_while_communicating);
        slower(&mut cluster.step_overhead);
        slower(&mut cluster.step_noise);
        later(&mut cluster.intra_hop_us);
        later(&mut cluster.intra_tree_hop_us);
        later(&mut cluster.inter_hop_us);
        later(&mut cluster.inter_tree_hop_us);
        later(&mut cluster.base_us);
        if let Some(nvls) = &mut cluster.nvls {
            faster(&mut nvls.bus_gb_per_s);
            slower(&mut nvls.latency_us);
        }
        cluster
    }
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("clusters")
}

fn path_of(name: &str) -> PathBuf {
    let is_file = name.contains('/') || Path::new(name).extension().is_some();
    if is_file { PathBuf::from(name) } else { folder().join(format!("{name}.yaml")) }
}

/// Returns the names of the clusters that come with the sources.
pub fn names() -> Vec<String> {
    let entries = std::fs::read_dir(folder()).into_iter().flatten().flatten();
    let stem = |entry: std::fs::DirEntry| {
        Some(entry.file_name().to_str()?.strip_suffix(".yaml")?.to_owned())
    };
    let mut names: Vec<String> = entries.filter_map(stem).collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cluster_is_good_and_sourced() {
        let names = names();
        assert!(names.len() >= 3, "{names:?}");
        for name in names {
            Cluster::load(&name).unwrap();
        }
    }

    #[test]
    fn a_figure_without_a_source_is_refused() {
        let text = std::fs::read_to_string(path_of("h100-nvlink-ib400")).unwrap();
        let start = text.find("source:").unwrap();
        let end = start + text[start..].find('\n').unwrap();
        let without = format!("{}source: \"\"{}", &text[..start], &text[end..]);
        assert!(Cluster::parse(&without).unwrap_err().contains("has no source"));
        let error = Cluster::parse(&text.replacen("uncertainty: 0", "uncertainty: 7", 1));
        assert!(error.unwrap_err().contains("is out of range"));
    }

    #[test]
    fn an_unknown_cluster_is_told_which_there_are() {
        let error = Cluster::load("dgx-9000").unwrap_err().to_string();
        assert!(error.contains("h100-nvlink-ib400"), "{error}");
    }
}

//! The rank and world size of this process, from the environment variables of whatever started it. Nothing
//! else in `comm` and `trainer` names these variables.

use crate::{CommError, Result};

/// Environment variable with the path of the launcher's Unix socket for this rank.
pub const CONTROL_SOCKET: &str = "LOCKSTEP_CONTROL";

/// Environment variable with the log format of a rank: `pretty`, or `json` for one object per line.
pub const LOG_FORMAT: &str = "LOCKSTEP_LOG_FORMAT";

/// NCCL's own environment variable, since NCCL 2.30: with 1, several ranks may use one GPU.
const MULTI_RANK_GPU: &str = "NCCL_MULTI_RANK_GPU_ENABLE";

/// Returns whether NCCL is configured to allow several ranks on one GPU.
pub fn shares_gpus() -> bool {
    std::env::var(MULTI_RANK_GPU).is_ok_and(|value| value.trim() == "1")
}

/// What started this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartedBy {
    /// Lockstep's launcher, or a user who set `RANK` and `WORLD_SIZE`.
    Launcher,
    /// `mpirun`.
    Mpirun,
    /// `srun`.
    Srun,
    /// None of these: a single process.
    Nobody,
}

/// The rank of this process in the job and on its machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct World {
    /// Global rank, from 0.
    pub rank: usize,
    /// Number of processes in the job.
    pub world_size: usize,
    /// Rank among the job's processes on this machine, from 0.
    pub local_rank: usize,
    /// Number of the job's processes on this machine.
    pub local_world_size: usize,
    /// The starter whose variables were read.
    pub started_by: StartedBy,
}

/// Variable names of one kind of starter: rank, world size, local rank, local world size.
type Names = [&'static str; 4];

const LAUNCHER: Names = ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"];
const OPEN_MPI: Names = [
    "OMPI_COMM_WORLD_RANK",
    "OMPI_COMM_WORLD_SIZE",
    "OMPI_COMM_WORLD_LOCAL_RANK",
    "OMPI_COMM_WORLD_LOCAL_SIZE",
];
const HYDRA: Names = ["PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"];
const SLURM: Names = ["SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_NTASKS_PER_NODE"];
/// Slurm's number of tasks on each node of the step, as in `4(x2),3`.
const SLURM_TASKS: &str = "SLURM_STEP_TASKS_PER_NODE";

impl World {
    /// A job of one process.
    pub const SINGLE: Self = Self {
        rank: 0,
        world_size: 1,
        local_rank: 0,
        local_world_size: 1,
        started_by: StartedBy::Nobody,
    };

    /// Reads this process's environment.
    ///
    /// # Errors
    /// [`CommError::Environment`] when a variable is not a number or the ranks do not fit the world.
    pub fn from_env() -> Result<Self> {
        Self::from_lookup(|name| std::env::var(name).ok())
    }

    /// Reads the variables through `lookup`. The launcher's variables take precedence over `mpirun`'s, and
    /// those over `srun`'s, since each starter may itself have been started by the next.
    ///
    /// # Errors
    /// As [`Self::from_env`].
    pub fn from_lookup(lookup: impl Fn(&str) -> Option<String>) -> Result<Self> {
        // An `sbatch` script without `srun` has SLURM_PROCID=0 too; only a job step has a step id.
        let in_step = lookup("SLURM_STEP_ID").is_some() && lookup(SLURM[0]).is_some();
        let starters = [
            (LAUNCHER, StartedBy::Launcher),
            (OPEN_MPI, StartedBy::Mpirun),
            (HYDRA, StartedBy::Mpirun),
        ];
        for (names, started_by) in starters {
            // Slurm's PMI sets PMI_RANK and PMI_SIZE, as Hydra does, but not the local rank and size.
            let is_slurms = names == HYDRA && in_step && lookup(names[2]).is_none();
            if lookup(names[0]).is_some() && !is_slurms {
                return Self::read(&lookup, names, started_by);
            }
        }
        if in_step {
            return Self::read(&lookup, SLURM, StartedBy::Srun);
        }
        Ok(Self::SINGLE)
    }

    fn read(
        lookup: &impl Fn(&str) -> Option<String>,
        names: Names,
        started_by: StartedBy,
    ) -> Result<Self> {
        let number = |name: &str| match lookup(name) {
            None => Ok(None),
            Some(text) => text.parse::<usize>().map(Some).map_err(|_| {
                CommError::Environment(format!("{name}={text} in the environment is not a number"))
            }),
        };
        let required = |name: &str| {
            number(name)?.ok_or_else(|| {
                CommError::Environment(format!("{} is set but {name} is not", names[0]))
            })
        };
        let (rank, world_size) = (required(names[0])?, required(names[1])?);
        let local_rank = number(names[2])?.unwrap_or(rank);
        let tasks = match started_by {
            StartedBy::Srun => lookup(SLURM_TASKS).zip(number("SLURM_NODEID")?),
            _ => None,
        };
        let here = tasks.and_then(|(tasks, node)| tasks_of_node(&tasks, node));
        let local_world_size = match here {
            Some(here) => here,
            None => number(names[3])?.unwrap_or(world_size),
        };
        if rank >= world_size || local_rank >= local_world_size {
            return Err(CommError::Environment(format!(
                "{}={rank} of {}={world_size}, {}={local_rank} of {}={local_world_size}: \
                 a rank must be less than the number of ranks",
                names[0], names[1], names[2], names[3]
            )));
        }
        Ok(Self { rank, world_size, local_rank, local_world_size, started_by })
    }

    /// Returns the variables from which a child process reads this place in the job.
    pub fn to_env(self) -> [(&'static str, String); 4] {
        let [rank, world_size, local_rank, local_world_size] = LAUNCHER;
        [
            (rank, self.rank.to_string()),
            (world_size, self.world_size.to_string()),
            (local_rank, self.local_rank.to_string()),
            (local_world_size, self.local_world_size.to_string()),
        ]
    }
}

/// Returns the number of tasks on `node` from Slurm's list, in which `4(x2),3` means two nodes with four
/// tasks, then one with three.
fn tasks_of_node(list: &str, node: usize) -> Option<usize> {
    let mut before = 0;
    for entry in list.split(',') {
        let (tasks, nodes) = match entry.split_once("(x") {
            Some((tasks, nodes)) => (tasks, nodes.strip_suffix(')')?.parse().ok()?),
            None => (entry, 1),
        };
        before += nodes;
        if node < before {
            return tasks.parse().ok();
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn world(pairs: &[(&str, &str)]) -> Result<World> {
        World::from_lookup(|name| {
            pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn no_variables_mean_a_single_process() {
        assert_eq!(world(&[]).unwrap(), World::SINGLE);
        assert_eq!(world(&[("SLURM_PROCID", "0"), ("SLURM_NTASKS", "4")]).unwrap(), World::SINGLE);
    }

    #[test]
    fn the_launcher_wins_over_mpirun() {
        let both = [
            ("RANK", "1"),
            ("WORLD_SIZE", "2"),
            ("OMPI_COMM_WORLD_RANK", "0"),
            ("OMPI_COMM_WORLD_SIZE", "1"),
        ];
        let world = world(&both).unwrap();
        assert_eq!((world.rank, world.world_size, world.local_rank), (1, 2, 1));
        assert_eq!(world.started_by, StartedBy::Launcher);
    }

    #[test]
    fn slurms_own_pmi_does_not_say_where_ranks_are_and_the_step_does() {
        let step = [
            ("PMI_RANK", "4"),
            ("PMI_SIZE", "11"),
            ("SLURM_STEP_ID", "0"),
            ("SLURM_PROCID", "4"),
            ("SLURM_NTASKS", "11"),
            ("SLURM_LOCALID", "0"),
            ("SLURM_NODEID", "1"),
            ("SLURM_STEP_TASKS_PER_NODE", "4(x2),3"),
        ];
        let found = world(&step).unwrap();
        let place = (found.rank, found.world_size, found.local_rank, found.local_world_size);
        assert_eq!((place, found.started_by), ((4, 11, 0, 4), StartedBy::Srun));
        let hydra = [&step[..], &[("MPI_LOCALRANKID", "2"), ("MPI_LOCALNRANKS", "6")]].concat();
        let found = world(&hydra).unwrap();
        assert_eq!((found.local_rank, found.started_by), (2, StartedBy::Mpirun));
        assert_eq!(
            [0, 1, 2, 3].map(|node| tasks_of_node("4(x2),3", node)).map(Option::unwrap_or_default),
            [4, 4, 3, 0]
        );
        assert_eq!(tasks_of_node("many", 0), None);
    }

    #[test]
    fn what_a_child_is_told_is_what_it_reads() {
        let told = World {
            rank: 5,
            world_size: 8,
            local_rank: 1,
            local_world_size: 4,
            started_by: StartedBy::Launcher,
        };
        let pairs = told.to_env();
        let lookup =
            |name: &str| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| value.clone());
        assert_eq!(World::from_lookup(lookup).unwrap(), told);
    }

    #[test]
    fn contradictions_are_named() {
        let error = world(&[("RANK", "2"), ("WORLD_SIZE", "2")]).unwrap_err().to_string();
        assert!(error.contains("RANK=2 of WORLD_SIZE=2"), "{error}");
        let error = world(&[("RANK", "x"), ("WORLD_SIZE", "2")]).unwrap_err().to_string();
        assert!(error.contains("RANK=x"), "{error}");
        let error = world(&[("RANK", "0")]).unwrap_err().to_string();
        assert!(error.contains("WORLD_SIZE is not"), "{error}");
    }
}

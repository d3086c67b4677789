//! Use of the processors by other processes during a run: measurements beside other work mean little.

use std::fs;

use serde::{Deserialize, Serialize};

/// Processor time since the machine started, in clock ticks.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Ticks {
    /// Time of all processors, busy or not.
    total: f64,
    /// Time in which they ran something.
    busy: f64,
    /// Time in which something was ready to run while the host ran another virtual machine.
    steal: f64,
    /// Part of `busy` that was used by this process, and by its descendants that have ended.
    own: f64,
}

/// Shares of the machine's processor time.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Load {
    /// Used by other processes: by all except this process and its descendants that have ended.
    pub others: f64,
    /// Taken by the host for other virtual machines.
    pub steal: f64,
}

impl Ticks {
    /// Reads the ticks until now.
    pub fn now() -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        Self::parse(&read("/proc/stat"), &read("/proc/self/stat"))
    }

    /// Parses `/proc/stat` and `/proc/self/stat`; zero where they hold something else.
    ///
    /// Source: proc_stat(5), proc_pid_stat(5).
    fn parse(machine: &str, process: &str) -> Self {
        let numbers = |text: &str| -> Vec<f64> {
            text.split_whitespace().map(|word| word.parse().unwrap_or(0.0)).collect()
        };
        let line = machine.lines().next().unwrap_or_default();
        let times = numbers(line.strip_prefix("cpu ").unwrap_or_default());
        let at = |index: usize| times.get(index).copied().unwrap_or(0.0);
        let [user, nice, system, idle, io_wait, irq, soft_irq, steal] = std::array::from_fn(at);
        let busy = user + nice + system + irq + soft_irq;
        // The program's name may hold spaces; the state after it is field 3.
        let fields = numbers(process.rsplit_once(')').map_or("", |(_, rest)| rest));
        let field = |number: usize| fields.get(number - 3).copied().unwrap_or(0.0);
        let own = (14..=17).map(field).sum();
        Self { total: busy + idle + io_wait + steal, busy, steal, own }
    }

    /// Returns the shares of the time since `before`.
    pub fn since(self, before: Self) -> Load {
        let total = (self.total - before.total).max(1.0);
        let others = self.busy - before.busy - (self.own - before.own);
        Load { others: (others / total).max(0.0), steal: (self.steal - before.steal) / total }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_this_process_and_its_children_used_is_not_the_others() {
        let process = |own: u32, user: u32, system: u32| {
            format!("7 (a b) c) S 1 7 7 0 -1 0 0 0 0 0 {own} 5 {user} {system} 20 0 1 0 0")
        };
        let before = Ticks::parse("cpu  100 0 0 100 0 0 0 0 0 0\ncpu0 1\n", &process(5, 10, 0));
        let after = Ticks::parse("cpu  180 5 7 190 0 0 0 18 0 0\n", &process(7, 60, 30));
        assert_eq!(after.since(before), Load { others: 0.05, steal: 0.09 });
    }

    #[test]
    fn this_machine_says() {
        let now = Ticks::now();
        assert!(now.total > 0.0 && now.busy > 0.0);
    }
}

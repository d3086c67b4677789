//! The arithmetic in which layers compute, and whether the CPU supports it natively.

use comm::{Communicator, ReduceOp};
use job::config::Precision;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind};
use tracing::{info, warn};

use crate::Result;
use crate::collective::reduce_values;

/// The arithmetic in which layers compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Arithmetic {
    /// Single precision.
    Fp32,
    /// bfloat16, by autocast.
    Bf16,
    /// Half precision, by autocast.
    Fp16,
}

impl Arithmetic {
    /// Returns the arithmetic for `precision`. `auto` is bf16 if all ranks support it natively, else fp32.
    /// Warns if this CPU does not compute in the result natively, which is slow. Collective: all ranks
    /// return the same.
    ///
    /// # Errors
    /// When a peer is gone or late.
    pub fn choose(
        precision: Precision,
        device: Device,
        communicator: &dyn Communicator,
    ) -> Result<Self> {
        let is_native = |arithmetic| device.is_cuda() || computes_in(arithmetic, &cpu_flags());
        let chosen = match precision {
            Precision::Fp32 => Self::Fp32,
            Precision::Bf16 => Self::Bf16,
            Precision::Fp16 => Self::Fp16,
            Precision::Auto => {
                let lacks = f64::from(!is_native(Self::Bf16));
                let lacking = reduce_values(communicator, device, &[lacks], ReduceOp::Sum)?;
                let lacking = lacking.iter().sum::<f64>() as usize;
                if lacking > 0 {
                    let ranks = job::counted(lacking, "rank");
                    info!("computing in fp32: the CPUs of {ranks} have no native bf16");
                    return Ok(Self::Fp32);
                }
                Self::Bf16
            }
        };
        if !is_native(chosen) {
            warn!(
                "precision: {} is slow on this CPU, which does not support it natively; use auto",
                if chosen == Self::Bf16 { "bf16" } else { "fp16" }
            );
        }
        Ok(chosen)
    }

    /// Returns the 16-bit dtype of this arithmetic, or `None` for fp32.
    pub fn half(self) -> Option<Kind> {
        match self {
            Self::Fp32 => None,
            Self::Bf16 => Some(Kind::BFloat16),
            Self::Fp16 => Some(Kind::Half),
        }
    }
}

fn cpu_flags() -> String {
    std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default()
}

/// Returns whether a CPU multiplies natively in `arithmetic`. `cpu`: the text of `/proc/cpuinfo`, with the
/// `flags` of x86 or the `Features` of Arm.
fn computes_in(arithmetic: Arithmetic, cpu: &str) -> bool {
    let wanted: &[&str] = match arithmetic {
        Arithmetic::Fp32 => return true,
        Arithmetic::Bf16 => &["avx512_bf16", "amx_bf16", "bf16"],
        Arithmetic::Fp16 => &["avx512_fp16", "asimdhp"],
    };
    cpu.split_whitespace().any(|flag| wanted.contains(&flag))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cpu_says_what_it_computes_in() {
        let genoa = "flags : fpu fma avx2 avx512f avx512_bf16\n";
        let milan = "flags : fpu fma avx2 f16c\n";
        let graviton = "Features : fp asimd asimdhp bf16\n";
        for (cpu, bf16, fp16) in
            [(genoa, true, false), (milan, false, false), (graviton, true, true)]
        {
            assert_eq!(computes_in(Arithmetic::Bf16, cpu), bf16, "{cpu}");
            assert_eq!(computes_in(Arithmetic::Fp16, cpu), fp16, "{cpu}");
            assert!(computes_in(Arithmetic::Fp32, cpu));
        }
    }

    #[test]
    fn auto_is_bf16_only_where_it_is_native() {
        let alone = comm::single::Single::default();
        let chosen = Arithmetic::choose(Precision::Auto, Device::Cpu, &alone).unwrap();
        let native = computes_in(Arithmetic::Bf16, &cpu_flags());
        assert_eq!(chosen, if native { Arithmetic::Bf16 } else { Arithmetic::Fp32 });
        let asked = Arithmetic::choose(Precision::Bf16, Device::Cpu, &alone).unwrap();
        assert_eq!(asked, Arithmetic::Bf16);
    }
}

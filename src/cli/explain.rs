//! Commands `hotpool explain ...`: what a claim would be given.

use clap::Args;

use super::claims::TakeArgs;
use super::failure::{CommandExit, CommandFailure};
use super::output::{bytes, describe_amounts, join_nonempty, property_list};
use super::pools::PREEMPTION_PAUSED;
use super::{CommandContext, ConnectionArgs};
use crate::client::{ExplainReply, PlacementReply, PoolSurveyReply, QuotaHeadroomReply};

/// Show what a claim would get, and why; claims nothing
#[derive(Debug, Args)]
#[command(after_help = "Exit code 0: the claim would be placed. 3: it would be refused.\n\n\
                        Examples:\n  hotpool explain demo/gpu --cpu-milli 2000 --gpu a100:2\n  \
                        hotpool explain demo/warm demo/cold --selector 'zone=a' --node n1")]
pub struct ExplainCommand {
    #[command(flatten)]
    pub(super) connection: ConnectionArgs,
    #[command(flatten)]
    take: TakeArgs,
}

impl ExplainCommand {
    pub(super) async fn run(self, context: &CommandContext) -> Result<CommandExit, CommandFailure> {
        let explanation = context.client.explain(&self.take.into_request()?).await?;
        context.print_reply(&explanation, explanation_text)?;
        Ok(if explanation.would_take.is_some() { CommandExit::Ok } else { CommandExit::Refused })
    }
}

fn explanation_text(explanation: &ExplainReply) -> String {
    let outcome = match (&explanation.would_take, &explanation.error) {
        (Some(PlacementReply { pool, worker, node }), _) => {
            let node = node.as_ref().map(|node| format!(" on node {node}")).unwrap_or_default();
            format!("placed: worker {worker} of {pool}{node}")
        }
        (None, Some(error)) => {
            let reason = error.reason.as_ref().map(|reason| format!(", {reason}")).unwrap_or_default();
            format!("refused: {} ({}{reason})", error.message, error.code)
        }
        (None, None) => "refused".to_owned(),
    };
    let pools = explanation.pools.iter().map(survey_text);
    let quota = headroom_text(&explanation.quota_headroom);
    [property_list(&[("outcome", outcome), ("quota left", quota)])]
        .into_iter()
        .chain(pools)
        .collect::<Vec<_>>()
        .join("\n\n")
}

/// Formats what is left of a quota; empty if nothing is limited.
fn headroom_text(headroom: &QuotaHeadroomReply) -> String {
    let QuotaHeadroomReply { claims, cpu_milli, memory_bytes, gpu_milli } = *headroom;
    let thousandths = |name: &str, milli: Option<u64>| {
        milli.map_or_else(String::new, |milli| format!("{name} {}", milli as f64 / 1e3))
    };
    join_nonempty([
        claims.map_or_else(String::new, |claims| format!("claims {claims}")),
        thousandths("cpu", cpu_milli),
        memory_bytes.map_or_else(String::new, |memory_bytes| format!("memory {}", bytes(memory_bytes))),
        thousandths("gpu", gpu_milli),
    ])
}

/// Formats what stands before the claim; empty if nothing does.
fn ahead_text(survey: &PoolSurveyReply) -> String {
    let counted = |count: u64, one: &str, many: &str| match count {
        0 => String::new(),
        1 => format!("1 {one}"),
        _ => format!("{count} {many}"),
    };
    join_nonempty([counted(survey.ahead, "claim", "claims"), counted(survey.gangs_ahead, "gang", "gangs")])
}

fn survey_text(survey: &PoolSurveyReply) -> String {
    let ruled_out: Vec<_> = survey.ruled_out.iter().map(|(filter, count)| format!("{filter} {count}")).collect();
    let too_small = match survey.too_small {
        0 => String::new(),
        count => format!(" ({count} of them too small in all)"),
    };
    let silent = match survey.silent_shards {
        0 => String::new(),
        count => format!("{count} did not answer"),
    };
    let mut properties = vec![
        ("pool", survey.pool.clone()),
        ("shards", silent),
        ("workers", survey.workers.to_string()),
        ("fits", survey.fits.to_string()),
        ("ruled out", format!("{}{too_small}", ruled_out.join(", "))),
    ];
    if survey.preemption_paused {
        properties.push(("preemption", PREEMPTION_PAUSED.to_owned()));
    }
    properties.extend(survey.nearest.iter().map(|near| {
        let node = near.node.as_ref().map(|node| format!(" (node {node})")).unwrap_or_default();
        ("nearest", format!("{}{node}", near.text))
    }));
    properties.push(("most free", describe_amounts(&survey.most_free)));
    properties.push(("ahead", ahead_text(survey)));
    property_list(&properties)
}

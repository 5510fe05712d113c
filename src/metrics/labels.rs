//! The labels whose values are known beforehand, so that no series comes from what a caller says.

use crate::model::ClaimResult;
use crate::model::request_error::{ExhaustionReason, RequestError, UnavailableReason};

/// Declares a label whose values are an enum.
macro_rules! label {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name { $($(#[$variant_doc])* $variant),* }

        impl $name {
            /// Every value.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// The word on the wire.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),* }
            }
        }
    };
}

label! {
    /// What became of a claim.
    ClaimOutcome {
        /// A new claim.
        Created = "created",
        /// The key held it already.
        Existing = "existing",
        /// No worker was free.
        PoolExhausted = "pool_exhausted",
        /// No worker was free on the nodes that it required, but one elsewhere.
        NodeLocality = "node_locality",
        /// No pool had the class and labels that it asked for.
        NoEligiblePool = "no_eligible_pool",
        /// No worker was large enough, busy ones included.
        Unsatisfiable = "unsatisfiable",
        /// The tenant's quota was used up.
        Quota = "quota",
        /// A queue was full.
        Overloaded = "overloaded",
        /// A shard was not serving.
        Loading = "loading",
        /// The store did not take the record in time.
        Store = "store",
        /// Another process owns the store.
        Fenced = "fenced",
        /// What is there did not allow it.
        Conflict = "conflict",
        /// The request was wrong.
        Invalid = "invalid",
        /// No such pool.
        NotFound = "not_found",
        /// No answer in time.
        Deadline = "deadline",
    }
}

impl ClaimOutcome {
    /// The outcome that an answer is counted under.
    #[must_use]
    pub const fn of(answer: &Result<ClaimResult, RequestError>) -> Self {
        match answer {
            Ok(ClaimResult { created: true, .. }) => Self::Created,
            Ok(_) => Self::Existing,
            Err(RequestError::Invalid { .. }) => Self::Invalid,
            Err(RequestError::NotFound(_)) => Self::NotFound,
            Err(
                RequestError::FenceMismatch
                | RequestError::Releasing
                | RequestError::Preempted
                | RequestError::VersionConflict(_)
                | RequestError::FailedPrecondition(_),
            ) => Self::Conflict,
            Err(RequestError::Exhausted(ExhaustionReason::Pool | ExhaustionReason::Worker)) => Self::PoolExhausted,
            Err(RequestError::Exhausted(ExhaustionReason::NodeLocality)) => Self::NodeLocality,
            Err(RequestError::Exhausted(ExhaustionReason::NoEligiblePool)) => Self::NoEligiblePool,
            Err(RequestError::Exhausted(ExhaustionReason::Quota(_))) => Self::Quota,
            Err(RequestError::Unsatisfiable | RequestError::GangTooLarge) => Self::Unsatisfiable,
            Err(RequestError::GangMemberRejected(_)) => Self::Conflict,
            // No claim is refused for those who watch.
            Err(RequestError::Unavailable(UnavailableReason::Overloaded) | RequestError::TooManyWatchers) => {
                Self::Overloaded
            }
            Err(RequestError::Unavailable(UnavailableReason::Loading | UnavailableReason::Stopping)) => Self::Loading,
            Err(RequestError::Unavailable(UnavailableReason::Store)) => Self::Store,
            Err(RequestError::Unavailable(UnavailableReason::Fenced)) => Self::Fenced,
            Err(RequestError::DeadlineExceeded) => Self::Deadline,
        }
    }
}

label! {
    /// What became of a gang.
    GangOutcome {
        /// All of its claims were made.
        Committed = "committed",
        /// None was.
        Refused = "refused",
        /// Unknown to its caller: a step of it was not answered.
        InDoubt = "in_doubt",
    }
}

label! {
    /// Which deadline ended a claim.
    ExpiryReason {
        /// It was never confirmed.
        Reserve = "reserve",
        /// It was not renewed.
        Ttl = "ttl",
        /// Its release was begun and not finished.
        Releasing = "releasing",
        /// Its worker did not name it any more.
        Missing = "missing",
    }
}

label! {
    /// The store's answer to one step.
    StoreWriteResult {
        /// Applied.
        Ok = "ok",
        /// It had it already.
        Duplicate = "duplicate",
        /// It lacks what the step builds on.
        Gap = "gap",
        /// Another process owns it.
        Fenced = "fenced",
        /// It failed; the step is sent again.
        Error = "error",
        /// It is as it should be: the step carried nothing and only looked.
        Checked = "checked",
    }
}

label! {
    /// What became of a renewal of ownership.
    RenewalResult {
        /// Renewed.
        Ok = "ok",
        /// The record was gone; it is written anew.
        Missing = "missing",
        /// Another process owns the store.
        Fenced = "fenced",
        /// The store did not answer.
        Error = "error",
    }
}

label! {
    /// Whether a shard answers.
    ShardState {
        /// Being recovered or restarted.
        Loading = "loading",
        /// Answers.
        Serving = "serving",
        /// Its records could not be used.
        Refused = "refused",
        /// Stopped.
        Stopped = "stopped",
    }
}

label! {
    /// The matched route of an HTTP request.
    HttpRoute {
        /// Where to go on from the address alone.
        Root = "/",
        /// All pools.
        Pools = "/v1/pools",
        /// One pool.
        Pool = "/v1/pools/{ns}/{pool}",
        /// The workers of a pool.
        Workers = "/v1/pools/{ns}/{pool}/workers",
        /// Many registrations.
        WorkersBatch = "/v1/pools/{ns}/{pool}/workers:batch",
        /// Heartbeats of many workers.
        WorkersHeartbeat = "/v1/pools/{ns}/{pool}/workers:heartbeat",
        /// One worker.
        Worker = "/v1/pools/{ns}/{pool}/workers/{id}",
        /// Claim, and the list of claims.
        Claims = "/v1/claims",
        /// Many claims.
        ClaimsBatch = "/v1/claims:batch",
        /// What a claim would find.
        Explain = "/v1/explain",
        /// One claim.
        Claim = "/v1/claims/{ns}/{key}",
        /// Confirm.
        Confirm = "/v1/claims/{ns}/{key}:confirm",
        /// Release.
        Release = "/v1/claims/{ns}/{key}:release",
        /// Resize.
        Resize = "/v1/claims/{ns}/{key}:resize",
        /// Renew.
        Renew = "/v1/claims/{ns}/{key}:renew",
        /// Heartbeat of a worker.
        Heartbeat = "/v1/pools/{ns}/{pool}/workers/{id}:heartbeat",
        /// Cordon, uncordon, drain, clear.
        Steer = "/v1/pools/{ns}/{pool}/workers/{id}:verb",
        /// Trust all workers.
        ClearPool = "/v1/pools/{ns}/{pool}:clear",
        /// What waits for a pool.
        Demand = "/v1/pools/{ns}/{pool}/demand",
        /// What happens in a pool.
        Events = "/v1/pools/{ns}/{pool}/events",
        /// All quotas.
        Quotas = "/v1/quotas",
        /// The quota of tenants of a namespace without their own.
        NamespaceQuota = "/v1/quotas/{ns}",
        /// The quota of a tenant.
        Quota = "/v1/quotas/{ns}/{tenant}",
        /// The description of this interface.
        OpenApi = "/v1/openapi.json",
        /// Its viewer.
        Docs = "/docs",
        /// The files of the viewer.
        DocsFile = "/docs/{file}",
        /// Whether the process lives.
        Healthz = "/healthz",
        /// Whether every shard serves.
        Readyz = "/readyz",
        /// The scrape.
        Metrics = "/metrics",
        /// Figures of every shard.
        DebugShards = "/debug/shards",
        /// None of the above.
        Unmatched = "unmatched",
    }
}

label! {
    /// Why a request was refused by its head.
    RequestRefusal {
        /// Not one host, or none that can be read.
        InvalidHost = "invalid_host",
        /// A host that is not served.
        Host = "host",
        /// A page of another origin.
        Origin = "origin",
        /// A page of another site.
        FetchSite = "fetch_site",
        /// A body in a form that nobody reads.
        ContentEncoding = "content_encoding",
    }
}

label! {
    /// What became of a connection beyond `server.max_connections`.
    ExcessOutcome {
        /// A probe or a scrape was answered.
        Answered = "answered",
        /// Another request came, and was refused.
        Refused = "refused",
        /// No request came in time.
        Silent = "silent",
        /// The answer could not be sent in time.
        Late = "late",
        /// A newer connection beyond the limit took its place.
        Displaced = "displaced",
    }
}

label! {
    /// The method of a gRPC call.
    GrpcMethod {
        /// Put a pool.
        PutPool = "hotpool.v1.PoolService/PutPool",
        /// Change fields of a pool.
        UpdatePool = "hotpool.v1.PoolService/UpdatePool",
        /// One pool.
        GetPool = "hotpool.v1.PoolService/GetPool",
        /// All pools.
        ListPools = "hotpool.v1.PoolService/ListPools",
        /// Delete a pool.
        DeletePool = "hotpool.v1.PoolService/DeletePool",
        /// Trust the workers of a pool.
        ClearPool = "hotpool.v1.PoolService/ClearPool",
        /// What waits for a pool.
        GetDemand = "hotpool.v1.PoolService/GetDemand",
        /// What happens in a pool.
        WatchPool = "hotpool.v1.PoolService/WatchPool",
        /// Register a worker.
        RegisterWorker = "hotpool.v1.WorkerService/RegisterWorker",
        /// Register many.
        BatchRegisterWorkers = "hotpool.v1.WorkerService/BatchRegisterWorkers",
        /// One worker.
        GetWorker = "hotpool.v1.WorkerService/GetWorker",
        /// The workers of a pool.
        ListWorkers = "hotpool.v1.WorkerService/ListWorkers",
        /// Delete a worker.
        DeleteWorker = "hotpool.v1.WorkerService/DeleteWorker",
        /// A worker's heartbeat.
        HeartbeatWorker = "hotpool.v1.WorkerService/HeartbeatWorker",
        /// Heartbeats of many.
        BatchHeartbeatWorkers = "hotpool.v1.WorkerService/BatchHeartbeatWorkers",
        /// Cordon a worker.
        CordonWorker = "hotpool.v1.WorkerService/CordonWorker",
        /// Uncordon a worker.
        UncordonWorker = "hotpool.v1.WorkerService/UncordonWorker",
        /// Drain a worker.
        DrainWorker = "hotpool.v1.WorkerService/DrainWorker",
        /// Trust a worker.
        ClearWorker = "hotpool.v1.WorkerService/ClearWorker",
        /// Claim.
        TakeClaim = "hotpool.v1.ClaimService/TakeClaim",
        /// Many claims.
        BatchTakeClaims = "hotpool.v1.ClaimService/BatchTakeClaims",
        /// What a claim would find.
        ExplainClaim = "hotpool.v1.ClaimService/ExplainClaim",
        /// One claim.
        GetClaim = "hotpool.v1.ClaimService/GetClaim",
        /// The list of claims.
        ListClaims = "hotpool.v1.ClaimService/ListClaims",
        /// Confirm.
        ConfirmClaim = "hotpool.v1.ClaimService/ConfirmClaim",
        /// Resize.
        ResizeClaim = "hotpool.v1.ClaimService/ResizeClaim",
        /// Renew.
        RenewClaim = "hotpool.v1.ClaimService/RenewClaim",
        /// Release.
        ReleaseClaim = "hotpool.v1.ClaimService/ReleaseClaim",
        /// Many of these in flight.
        ClaimStream = "hotpool.v1.ClaimService/ClaimStream",
        /// Set a quota.
        PutQuota = "hotpool.v1.QuotaService/PutQuota",
        /// One quota.
        GetQuota = "hotpool.v1.QuotaService/GetQuota",
        /// Take a quota away.
        DeleteQuota = "hotpool.v1.QuotaService/DeleteQuota",
        /// All quotas.
        ListQuotas = "hotpool.v1.QuotaService/ListQuotas",
        /// Whether a service can be asked.
        HealthCheck = "grpc.health.v1.Health/Check",
        /// The same, and from then on.
        HealthWatch = "grpc.health.v1.Health/Watch",
        /// What is served.
        Reflection = "grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        /// The same, as older clients ask.
        ReflectionAlpha = "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        /// None of the above.
        Unmatched = "unmatched",
    }
}

impl GrpcMethod {
    /// The method of a call to `path`.
    #[must_use]
    pub fn of(path: &str) -> Self {
        let word = path.strip_prefix('/').unwrap_or_default();
        Self::ALL.iter().copied().find(|method| method.as_str() == word).unwrap_or(Self::Unmatched)
    }
}

label! {
    /// A status of gRPC; in the order of their numbers, from 0.
    GrpcCode {
        /// Done.
        Ok = "OK",
        /// The caller went away.
        Cancelled = "CANCELLED",
        /// None of the others.
        Unknown = "UNKNOWN",
        /// The request is wrong.
        InvalidArgument = "INVALID_ARGUMENT",
        /// No answer in time.
        DeadlineExceeded = "DEADLINE_EXCEEDED",
        /// No such thing.
        NotFound = "NOT_FOUND",
        /// It is there already.
        AlreadyExists = "ALREADY_EXISTS",
        /// The caller may not.
        PermissionDenied = "PERMISSION_DENIED",
        /// No room.
        ResourceExhausted = "RESOURCE_EXHAUSTED",
        /// What is there does not allow it.
        FailedPrecondition = "FAILED_PRECONDITION",
        /// The caller is not the holder.
        Aborted = "ABORTED",
        /// Beyond what there is.
        OutOfRange = "OUT_OF_RANGE",
        /// No such method.
        Unimplemented = "UNIMPLEMENTED",
        /// A defect, or bytes that are not gRPC.
        Internal = "INTERNAL",
        /// Not now.
        Unavailable = "UNAVAILABLE",
        /// What was kept is broken.
        DataLoss = "DATA_LOSS",
        /// Nobody knows who the caller is.
        Unauthenticated = "UNAUTHENTICATED",
    }
}

label! {
    /// The command of a RESP client.
    RespCommand {
        /// Claim.
        Claim = "claim",
        /// Release.
        Release = "release",
        /// Many claims.
        Claims = "claims",
        /// Confirm.
        Confirm = "confirm",
        /// Renew.
        Renew = "renew",
        /// Register a worker.
        Register = "register",
        /// A worker's heartbeat.
        Heartbeat = "heartbeat",
        /// What a claim would find.
        Explain = "explain",
        /// All pools.
        Pools = "pools",
        /// Protocol and name of the client.
        Hello = "hello",
        /// A password.
        Auth = "auth",
        /// Whether it lives.
        Ping = "ping",
        /// The same word again.
        Echo = "echo",
        /// What the service is.
        Info = "info",
        /// What it knows.
        Command = "command",
        /// Settings that clients ask for.
        Config = "config",
        /// Name and number of the connection.
        Client = "client",
        /// The database.
        Select = "select",
        /// The end.
        Quit = "quit",
        /// As if connected anew.
        Reset = "reset",
        /// The beginning of a transaction.
        Multi = "multi",
        /// The end of a transaction, which carries it out.
        Exec = "exec",
        /// The end of a transaction, which forgets it.
        Discard = "discard",
        /// Keys that a transaction depends on.
        Watch = "watch",
        /// No such keys any more.
        Unwatch = "unwatch",
        /// None of the above.
        Unknown = "unknown",
    }
}

label! {
    /// What a RESP client was answered: the first word of an error.
    RespOutcome {
        /// Done.
        Ok = "OK",
        /// The request is wrong.
        BadRequest = "BADREQ",
        /// No such thing.
        NotFound = "NOTFOUND",
        /// The caller is not the holder.
        Fenced = "FENCED",
        /// What is there does not allow it.
        Conflict = "CONFLICT",
        /// No room.
        NoCapacity = "NOCAPACITY",
        /// A queue is full.
        Overloaded = "OVERLOADED",
        /// Not serving yet, or not any more.
        Loading = "LOADING",
        /// The store is away.
        Unavailable = "UNAVAILABLE",
        /// No answer in time.
        Timeout = "TIMEOUT",
        /// No such command, or not so.
        Error = "ERR",
    }
}

label! {
    /// Why a RESP connection was ended by the service.
    RespCloseReason {
        /// Too many were open.
        TooMany = "too_many",
        /// What came was no command.
        Protocol = "protocol",
        /// What came was HTTP, as from a page in a browser.
        Http = "http",
        /// Nothing came for too long.
        Idle = "idle",
        /// The client did not read its answers.
        SlowReader = "slow_reader",
        /// A command did not come to its end.
        SlowWriter = "slow_writer",
        /// No room for so large a command.
        NoRoom = "no_room",
        /// A defect.
        Panic = "panic",
    }
}

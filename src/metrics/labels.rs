//! Labels with a fixed set of values, so that no request can create a series.

use crate::model::ClaimResult;
use crate::model::request_error::{ExhaustionReason, RequestError, UnavailableReason};

/// Declares the enum of a label with the text of each value.
macro_rules! label {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name { $($(#[$variant_doc])* $variant),* }

        impl $name {
            /// All values, in the order of their indices.
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            /// Text of the value in a scrape.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),* }
            }
        }
    };
}

label! {
    /// Outcome of a claim request.
    ClaimOutcome {
        /// Claim that was created.
        Created = "created",
        /// Claim that existed already under the key.
        Existing = "existing",
        /// Rejection because no worker was free.
        PoolExhausted = "pool_exhausted",
        /// Rejection because no worker on the required nodes was free, but one elsewhere.
        NodeLocality = "node_locality",
        /// Rejection because no pool had the requested class and labels.
        NoEligiblePool = "no_eligible_pool",
        /// Rejection because no worker was large enough, busy ones included.
        Unsatisfiable = "unsatisfiable",
        /// Rejection because the tenant's quota was used up.
        Quota = "quota",
        /// Rejection because a queue was full.
        Overloaded = "overloaded",
        /// Rejection because a shard was not serving.
        Loading = "loading",
        /// Rejection because the store did not confirm the record in time.
        Store = "store",
        /// Rejection because another process owns the store.
        Fenced = "fenced",
        /// Rejection because of the state of the claim or key.
        Conflict = "conflict",
        /// Rejection because the request was invalid.
        Invalid = "invalid",
        /// Rejection because the pool does not exist.
        NotFound = "not_found",
        /// Rejection because no answer came in time.
        Deadline = "deadline",
    }
}

impl ClaimOutcome {
    /// Outcome under which an answer is counted.
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
            Err(
                RequestError::Unsatisfiable
                | RequestError::GangTooLarge
                | RequestError::Exhausted(ExhaustionReason::Unsatisfiable),
            ) => Self::Unsatisfiable,
            Err(RequestError::GangMemberRejected(_)) => Self::Conflict,
            // A claim never fails because of watchers.
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
    /// Outcome of a gang request.
    GangOutcome {
        /// All claims of the gang were created.
        Committed = "committed",
        /// No claim of the gang was created.
        Refused = "refused",
        /// Outcome that is unknown to the caller, because a part of the commit got no answer.
        InDoubt = "in_doubt",
    }
}

label! {
    /// Deadline that ended a claim.
    ExpiryReason {
        /// Deadline for the confirmation of a reservation.
        Reserve = "reserve",
        /// Deadline for the renewal of an active claim.
        Ttl = "ttl",
        /// Deadline for the cleanup of a released claim.
        Releasing = "releasing",
        /// Deadline for the worker to report the claim again.
        Missing = "missing",
    }
}

label! {
    /// Outcome of one write batch.
    StoreWriteResult {
        /// Batch that was applied.
        Ok = "ok",
        /// Batch that the store had already.
        Duplicate = "duplicate",
        /// Batch that builds on records which the store lacks.
        Gap = "gap",
        /// Batch for a store that another process owns.
        Fenced = "fenced",
        /// Batch that failed and is sent again.
        Error = "error",
        /// Empty batch that found the store complete.
        Checked = "checked",
    }
}

label! {
    /// Outcome of a renewal of ownership.
    RenewalResult {
        /// Ownership that was renewed.
        Ok = "ok",
        /// Ownership record that was missing and is written anew.
        Missing = "missing",
        /// Store that another process owns.
        Fenced = "fenced",
        /// Store that did not answer.
        Error = "error",
    }
}

label! {
    /// State of a shard, by whether it serves.
    ShardState {
        /// Shard that is being recovered or restarted.
        Loading = "loading",
        /// Shard that serves requests.
        Serving = "serving",
        /// Shard whose records are unusable.
        Refused = "refused",
        /// Shard that was stopped.
        Stopped = "stopped",
    }
}

label! {
    /// Matched route of an HTTP request.
    HttpRoute {
        /// Overview with links to the other routes.
        Root = "/",
        /// List of all pools.
        Pools = "/v1/pools",
        /// Read of a pool by name.
        Pool = "/v1/pools/{ns}/{pool}",
        /// Workers of a pool.
        Workers = "/v1/pools/{ns}/{pool}/workers",
        /// Registration of many workers.
        WorkersBatch = "/v1/pools/{ns}/{pool}/workers:batch",
        /// Heartbeats of many workers.
        WorkersHeartbeat = "/v1/pools/{ns}/{pool}/workers:heartbeat",
        /// Read of a worker by id.
        Worker = "/v1/pools/{ns}/{pool}/workers/{id}",
        /// New claim, and the list of claims.
        Claims = "/v1/claims",
        /// Many claims in one request.
        ClaimsBatch = "/v1/claims:batch",
        /// Dry run of a claim.
        Explain = "/v1/explain",
        /// Read of a claim by key.
        Claim = "/v1/claims/{ns}/{key}",
        /// Confirmation of a claim.
        Confirm = "/v1/claims/{ns}/{key}:confirm",
        /// Release of a claim.
        Release = "/v1/claims/{ns}/{key}:release",
        /// Resize of a claim.
        Resize = "/v1/claims/{ns}/{key}:resize",
        /// Renewal of a claim.
        Renew = "/v1/claims/{ns}/{key}:renew",
        /// Heartbeat of one worker.
        Heartbeat = "/v1/pools/{ns}/{pool}/workers/{id}:heartbeat",
        /// Cordon, uncordon, drain or clear of a worker.
        Steer = "/v1/pools/{ns}/{pool}/workers/{id}:verb",
        /// Clear of all suspect workers of a pool.
        ClearPool = "/v1/pools/{ns}/{pool}:clear",
        /// Pending demand of a pool.
        Demand = "/v1/pools/{ns}/{pool}/demand",
        /// Event stream of a pool.
        Events = "/v1/pools/{ns}/{pool}/events",
        /// List of all quotas.
        Quotas = "/v1/quotas",
        /// Quota of the tenants of a namespace without their own.
        NamespaceQuota = "/v1/quotas/{ns}",
        /// Quota of one tenant.
        Quota = "/v1/quotas/{ns}/{tenant}",
        /// OpenAPI document of the service.
        OpenApi = "/v1/openapi.json",
        /// Viewer of the OpenAPI document.
        Docs = "/docs",
        /// File of the viewer.
        DocsFile = "/docs/{file}",
        /// Liveness probe of the process.
        Healthz = "/healthz",
        /// Readiness probe of the service.
        Readyz = "/readyz",
        /// Scrape of the metrics.
        Metrics = "/metrics",
        /// Internal state of every shard.
        DebugShards = "/debug/shards",
        /// Path that matches no route.
        Unmatched = "unmatched",
    }
}

label! {
    /// Reason for which a request was rejected because of its headers.
    RequestRefusal {
        /// Missing, repeated or malformed Host header.
        InvalidHost = "invalid_host",
        /// Host name that is not served.
        Host = "host",
        /// Page of another origin.
        Origin = "origin",
        /// Page of another site.
        FetchSite = "fetch_site",
        /// Body with an unsupported content encoding.
        ContentEncoding = "content_encoding",
    }
}

label! {
    /// Outcome of a connection above `server.max_connections`.
    ExcessOutcome {
        /// Probe or scrape that was answered.
        Answered = "answered",
        /// Other request, which was rejected.
        Refused = "refused",
        /// Connection without a request in time.
        Silent = "silent",
        /// Connection that did not take its answer in time.
        Late = "late",
        /// Connection that a newer excess one replaced.
        Displaced = "displaced",
    }
}

label! {
    /// Method of a gRPC call.
    GrpcMethod {
        /// Creation or replacement of a pool.
        PutPool = "hotpool.v1.PoolService/PutPool",
        /// Change of some fields of a pool.
        UpdatePool = "hotpool.v1.PoolService/UpdatePool",
        /// Read of a pool by name.
        GetPool = "hotpool.v1.PoolService/GetPool",
        /// List of all pools.
        ListPools = "hotpool.v1.PoolService/ListPools",
        /// Deletion of a pool.
        DeletePool = "hotpool.v1.PoolService/DeletePool",
        /// Clear of all suspect workers of a pool.
        ClearPool = "hotpool.v1.PoolService/ClearPool",
        /// Pending demand of a pool.
        GetDemand = "hotpool.v1.PoolService/GetDemand",
        /// Event stream of a pool.
        WatchPool = "hotpool.v1.PoolService/WatchPool",
        /// Registration of one worker.
        RegisterWorker = "hotpool.v1.WorkerService/RegisterWorker",
        /// Registration of many workers.
        BatchRegisterWorkers = "hotpool.v1.WorkerService/BatchRegisterWorkers",
        /// Read of a worker by id.
        GetWorker = "hotpool.v1.WorkerService/GetWorker",
        /// Workers of a pool.
        ListWorkers = "hotpool.v1.WorkerService/ListWorkers",
        /// Deletion of a worker.
        DeleteWorker = "hotpool.v1.WorkerService/DeleteWorker",
        /// Heartbeat of one worker.
        HeartbeatWorker = "hotpool.v1.WorkerService/HeartbeatWorker",
        /// Heartbeats of many workers.
        BatchHeartbeatWorkers = "hotpool.v1.WorkerService/BatchHeartbeatWorkers",
        /// Cordon of one worker.
        CordonWorker = "hotpool.v1.WorkerService/CordonWorker",
        /// Uncordon of one worker.
        UncordonWorker = "hotpool.v1.WorkerService/UncordonWorker",
        /// Drain of one worker.
        DrainWorker = "hotpool.v1.WorkerService/DrainWorker",
        /// Clear of one suspect worker.
        ClearWorker = "hotpool.v1.WorkerService/ClearWorker",
        /// New claim, or the existing one.
        TakeClaim = "hotpool.v1.ClaimService/TakeClaim",
        /// Many claims in one request.
        BatchTakeClaims = "hotpool.v1.ClaimService/BatchTakeClaims",
        /// Dry run of a claim.
        ExplainClaim = "hotpool.v1.ClaimService/ExplainClaim",
        /// Read of a claim by key.
        GetClaim = "hotpool.v1.ClaimService/GetClaim",
        /// List of all claims.
        ListClaims = "hotpool.v1.ClaimService/ListClaims",
        /// Confirmation of a claim.
        ConfirmClaim = "hotpool.v1.ClaimService/ConfirmClaim",
        /// Resize of a claim.
        ResizeClaim = "hotpool.v1.ClaimService/ResizeClaim",
        /// Renewal of a claim.
        RenewClaim = "hotpool.v1.ClaimService/RenewClaim",
        /// Release of a claim.
        ReleaseClaim = "hotpool.v1.ClaimService/ReleaseClaim",
        /// Stream of many requests in flight.
        ClaimStream = "hotpool.v1.ClaimService/ClaimStream",
        /// Creation or replacement of a quota.
        PutQuota = "hotpool.v1.QuotaService/PutQuota",
        /// Read of a quota by name.
        GetQuota = "hotpool.v1.QuotaService/GetQuota",
        /// Deletion of a quota.
        DeleteQuota = "hotpool.v1.QuotaService/DeleteQuota",
        /// List of all quotas.
        ListQuotas = "hotpool.v1.QuotaService/ListQuotas",
        /// Health of a service, once.
        HealthCheck = "grpc.health.v1.Health/Check",
        /// Health of a service, as a stream.
        HealthWatch = "grpc.health.v1.Health/Watch",
        /// Reflection of the served methods.
        Reflection = "grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        /// Reflection in the version of older clients.
        ReflectionAlpha = "grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        /// Path that is no method.
        Unmatched = "unmatched",
    }
}

impl GrpcMethod {
    /// Method of a call to `path`.
    #[must_use]
    pub fn of(path: &str) -> Self {
        let name = path.strip_prefix('/').unwrap_or_default();
        Self::ALL.iter().copied().find(|method| method.as_str() == name).unwrap_or(Self::Unmatched)
    }
}

label! {
    /// Status code of gRPC, in the order of the numbers from 0.
    GrpcCode {
        /// Call that was successful.
        Ok = "OK",
        /// Call that the caller cancelled.
        Cancelled = "CANCELLED",
        /// Error without a more specific code.
        Unknown = "UNKNOWN",
        /// Request that is invalid.
        InvalidArgument = "INVALID_ARGUMENT",
        /// Call without an answer in time.
        DeadlineExceeded = "DEADLINE_EXCEEDED",
        /// Object that does not exist.
        NotFound = "NOT_FOUND",
        /// Object that exists already.
        AlreadyExists = "ALREADY_EXISTS",
        /// Caller without the required permission.
        PermissionDenied = "PERMISSION_DENIED",
        /// Capacity or quota that is used up.
        ResourceExhausted = "RESOURCE_EXHAUSTED",
        /// State that does not allow the call.
        FailedPrecondition = "FAILED_PRECONDITION",
        /// Caller that does not hold the claim.
        Aborted = "ABORTED",
        /// Value beyond the valid range.
        OutOfRange = "OUT_OF_RANGE",
        /// Method that does not exist.
        Unimplemented = "UNIMPLEMENTED",
        /// Defect, or bytes that are not gRPC.
        Internal = "INTERNAL",
        /// Service that cannot answer now.
        Unavailable = "UNAVAILABLE",
        /// Stored data that is damaged.
        DataLoss = "DATA_LOSS",
        /// Caller without valid credentials.
        Unauthenticated = "UNAUTHENTICATED",
    }
}

label! {
    /// Command of a RESP client.
    RespCommand {
        /// New claim, or the existing one.
        Claim = "claim",
        /// Release of a claim.
        Release = "release",
        /// Many claims in one command.
        Claims = "claims",
        /// Confirmation of a claim.
        Confirm = "confirm",
        /// Renewal of a claim.
        Renew = "renew",
        /// Registration of a worker.
        Register = "register",
        /// Heartbeat of a worker.
        Heartbeat = "heartbeat",
        /// Dry run of a claim.
        Explain = "explain",
        /// List of all pools.
        Pools = "pools",
        /// Protocol version and name of the client.
        Hello = "hello",
        /// Password, which is not needed.
        Auth = "auth",
        /// Liveness check of the connection.
        Ping = "ping",
        /// Echo of its argument.
        Echo = "echo",
        /// Information about the service.
        Info = "info",
        /// Information about the commands.
        Command = "command",
        /// Settings that clients query.
        Config = "config",
        /// Name and number of the connection.
        Client = "client",
        /// Choice of the database.
        Select = "select",
        /// End of the connection.
        Quit = "quit",
        /// Reset of the connection state.
        Reset = "reset",
        /// Begin of a transaction.
        Multi = "multi",
        /// Execution of a transaction.
        Exec = "exec",
        /// Abort of a transaction.
        Discard = "discard",
        /// Keys that a transaction depends on.
        Watch = "watch",
        /// Removal of the watched keys.
        Unwatch = "unwatch",
        /// Command that does not exist.
        Unknown = "unknown",
    }
}

label! {
    /// Outcome of a RESP command: `OK`, or the first word of the error.
    RespOutcome {
        /// Command that was successful.
        Ok = "OK",
        /// Request that is invalid.
        BadRequest = "BADREQ",
        /// Object that does not exist.
        NotFound = "NOTFOUND",
        /// Caller that does not hold the claim.
        Fenced = "FENCED",
        /// State that does not allow the command.
        Conflict = "CONFLICT",
        /// Capacity or quota that is used up.
        NoCapacity = "NOCAPACITY",
        /// Queue that is full.
        Overloaded = "OVERLOADED",
        /// Service that starts or stops.
        Loading = "LOADING",
        /// Store that is unavailable.
        Unavailable = "UNAVAILABLE",
        /// Command without an answer in time.
        Timeout = "TIMEOUT",
        /// Command that does not exist or has wrong arguments.
        Error = "ERR",
    }
}

label! {
    /// Reason for which the service closed a RESP connection.
    RespCloseReason {
        /// Limit of connections that is reached.
        TooMany = "too_many",
        /// Bytes that are not RESP.
        Protocol = "protocol",
        /// HTTP request, as from a page in a browser.
        Http = "http",
        /// Connection without a command for too long.
        Idle = "idle",
        /// Client that does not read its replies.
        SlowReader = "slow_reader",
        /// Command that is not completed in time.
        SlowWriter = "slow_writer",
        /// Command that exceeds the memory for requests.
        NoRoom = "no_room",
        /// Panic in the service, which is a defect.
        Panic = "panic",
    }
}

export { type Clock, systemClock } from './common/clock.js';
export { KvssError, type KvssErrorCode } from './common/errors.js';
export type { TenantPolicy, TenantPolicyInput } from './common/tenant_policy.js';
export { type DaemonConfig, type DaemonConfigInput, defaultSocketPath } from './kvss/config.js';
export { KvssDaemon } from './kvss/daemon.js';
export type { PolicyList } from './kvss/policy_file.js';
export type { PolicyStore } from './kvss/policy_store.js';
export type { CarriedLink, Carrier } from './links/carrier.js';
export { CarrierClient, type CarrierOptions } from './links/carrier_client.js';
export { connectorFor } from './links/connect.js';
export type { Connector, DaemonConnection, ShardLink } from './links/link.js';
export type { DriverReport, ReportedDriver } from './proto/frames.js';
export type {
  ChannelMessages,
  ChannelName,
  EvictMessage,
  ExpireMessage,
  MatchMessage,
  RefillMessage,
  StripeMessage,
} from './swdriver/accounting/channels.js';
export { collectInto, type DriverMetricsSource } from './swdriver/accounting/driver_metrics.js';
export { MISS_CAUSES, type MissCause } from './swdriver/accounting/miss_cause.js';
export type { ContentSpan } from './swdriver/contents.js';
export type { DriverStats, GroupStats } from './swdriver/driver_stats.js';
export {
  type EvictionPolicy,
  hitDensity,
  hitDensityByCost,
  type LeafRanking,
  lru,
  POLICY_NAMES,
  policyNamed,
} from './swdriver/eviction_policy.js';
export type { Hit, RefillResult } from './swdriver/hit.js';
export type { Model, ModelGroup, ModelIdentity } from './swdriver/model.js';
export {
  type DescribeOptions,
  describeModel,
  groupsFrom,
  type LayerAllocation,
  type LayerGroup,
  type ModelDescription,
  type ShardPart,
  type SplitOptions,
  splitGroup,
} from './swdriver/model_config.js';
export type { ColumnMemory, ColumnRef, PieceSink, PieceSource } from './swdriver/runtime.js';
export type { EvictResult, MatchOptions, Sequence } from './swdriver/sequence.js';
export {
  type GroupInfo,
  type Resumed,
  type ResumeOptions,
  SwDriver,
  type SwDriverEvents,
  type SwDriverOptions,
} from './swdriver/sw_driver.js';
export { type EffectivePolicy, TenantPolicies } from './swdriver/tenant_policies.js';
export { overTopology } from './wafer/shaped_link.js';
export { Topology, type TopologyInput } from './wafer/topology.js';

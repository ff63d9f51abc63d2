// Grafana's types as JSON has them, and a panel whose options and fields are those of its kind.
//
// Grafana's own Panel leaves `options`, `fieldConfig.defaults.custom` and `targets` open. Here each
// kind of panel is joined with the types that its plugin publishes, so that a misspelt option is an
// error too.
import type {
  Dashboard as AnyDashboard,
  DataQuery,
  DataSourceRef,
  Panel as AnyPanel,
  RowPanel as AnyRow,
} from "@grafana/schema";
import type * as timeseries from "@grafana/schema/dist/esm/raw/composable/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen";
import type * as stat from "@grafana/schema/dist/esm/raw/composable/stat/panelcfg/x/StatPanelCfg_types.gen";
import type * as bargauge from "@grafana/schema/dist/esm/raw/composable/bargauge/panelcfg/x/BarGaugePanelCfg_types.gen";
import type * as table from "@grafana/schema/dist/esm/raw/composable/table/panelcfg/x/TablePanelCfg_types.gen";

// An enum's values as plain strings: that is what JSON holds.
export type Json<T> = T extends string
  ? `${T}`
  : T extends number | boolean | null | undefined
    ? T
    : T extends Array<infer U>
      ? Array<Json<U>>
      : T extends object
        ? { [K in keyof T]: Json<T[K]> }
        : T;

// What Grafana's Prometheus data source sends; its package publishes no schema of it.
interface PrometheusQuery extends DataQuery {
  datasource: DataSourceRef;
  expr: string;
  legendFormat: string;
  instant: boolean;
  range: boolean;
  format: "time_series" | "table" | "heatmap";
  editorMode: "code" | "builder";
}

type Fields = NonNullable<AnyPanel["fieldConfig"]>;

interface PanelOf<Kind extends string, Options, Custom>
  extends Omit<AnyPanel, "type" | "options" | "fieldConfig" | "targets"> {
  type: Kind;
  options: Options;
  fieldConfig: Omit<Fields, "defaults"> & {
    defaults: Omit<Fields["defaults"], "custom"> & { custom: Custom };
  };
  targets: PrometheusQuery[];
}

interface Nothing {}

type Panel =
  | PanelOf<"timeseries", timeseries.Options, timeseries.FieldConfig>
  | PanelOf<"stat", stat.Options, Nothing>
  | PanelOf<"bargauge", bargauge.Options, Nothing>
  | PanelOf<"table", table.Options, table.FieldConfig>;

// Both: what Grafana says a dashboard is, and what its plugins say their panels are.
export type PublishedDashboard = Json<AnyDashboard>;
export type Dashboard = Json<
  Omit<AnyDashboard, "panels"> & { panels: Array<Panel | AnyRow> }
>;

package config

import (
	"testing"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestDecodeEverything(t *testing.T) {
	config, err := Decode(configMap("stillpoint", `
version: v1
snapshotClasses:
- match:
    drivers: [CSI.example.com]
    storageClasses: ["fast-*", gold]
    namespaces: ["shop"]
    claims: {matchLabels: {example.com/tier: gold}}
    backups: {matchExpressions: [{key: velero.io/schedule-name, operator: In, values: [nightly]}]}
  class: gold
- class: rest
drivers:
- name: csi.example.com
  exports: {when: [{parameter: kind, value: remote}, {parameter: type}]}
  restoreFrom: export
  accessModes: [ReadWriteOnce]
  quiesce: required
  freeze: flush
- {name: driver.longhorn.io, exports: {always: true}}
dataMovers:
- {name: acme, deleteSnapshots: true}
- {name: other}
localSnapshots:
- {match: {namespaces: [shop]}, policy: keepLast, count: 3}
- {policy: retain}
restore:
  drivers:
  - {from: old.example.com, to: new.example.com}
  - {from: older.example.com, to: new.example.com}
  snapshotClasses:
  - {from: a, to: b}
  - {from: b, skip: true}
  deletionPolicy: Delete
nodeThaw: {image: "example.com/stillpoint:1"}
`))
	require.NoError(t, err)
	require.Equal(t, &Config{
		Version:             "v1",
		BlueprintNamespaces: []string{"velero"},
		SnapshotClasses: []SnapshotClassRule{
			{
				Match: Match{
					Drivers:        []string{"CSI.example.com"},
					StorageClasses: []string{"fast-*", "gold"},
					Namespaces:     []string{"shop"},
					Claims:         &metav1.LabelSelector{MatchLabels: map[string]string{"example.com/tier": "gold"}},
					Backups: &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{
						{Key: "velero.io/schedule-name", Operator: "In", Values: []string{"nightly"}},
					}},
				},
				Class: "gold",
			},
			{Class: "rest"},
		},
		Drivers: []DriverProfile{
			{
				Name: "csi.example.com", Exports: Exports{When: []ClassParameter{{"kind", "remote"}, {"type", ""}}},
				RestoreFrom: RestoreFromExport, AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}, Quiesce: QuiesceRequired, Freeze: FreezeFlush,
			},
			{Name: "driver.longhorn.io", Exports: Exports{Always: true}},
		},
		DataMovers: []DataMover{{"acme", true}, {"other", false}},
		LocalSnapshots: []LocalSnapshotRule{
			{Match: Match{Namespaces: []string{"shop"}}, Policy: LocalSnapshotKeepLast, Count: 3},
			{Policy: LocalSnapshotRetain},
		},
		Restore: Restore{
			Drivers:         []DriverMapping{{"old.example.com", "new.example.com"}, {"older.example.com", "new.example.com"}},
			SnapshotClasses: []SnapshotClassMapping{{From: "a", To: "b"}, {From: "b", Skip: true}},
			DeletionPolicy:  snapshotv1.VolumeSnapshotContentDelete,
		},
		NodeThaw: &NodeThaw{Image: "example.com/stillpoint:1"},
	}, config)
	require.Equal(t, "/var/lib/kubelet", config.NodeThaw.Directory())
}

const subdomain = `a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')`

func TestValidate(t *testing.T) {
	for name, test := range map[string]struct {
		doc string
		err string
	}{
		"nulls":           {doc: "snapshotClasses:\nrestore:"},
		"nulls in a rule": {doc: "snapshotClasses: [{match: {drivers: , storageClasses: , claims: }, class: a}]\nrestore: {drivers: , deletionPolicy: }"},

		"unknown key of a rule":  {doc: "snapshotClasses: [{class: a, name: b}]", err: "snapshotClasses[0].name: Forbidden: unknown key; valid keys: class, match"},
		"unknown key of a match": {doc: "snapshotClasses: [{class: a, match: {driver: x}}]", err: "snapshotClasses[0].match.driver: Forbidden: unknown key; valid keys: backups, claims, drivers, namespaces, storageClasses"},
		"capital in a key":       {doc: "snapshotClasses: [{Class: a, class: b}]", err: "snapshotClasses[0].Class: Forbidden: unknown key; valid keys: class, match"},
		"unknown key of a selector": {doc: "snapshotClasses: [{class: a, match: {claims: {app: x}}}]", err: "snapshotClasses[0].match.claims.app: Forbidden: unknown key; valid keys: matchExpressions, matchLabels\n" +
			"snapshotClasses[0].match.claims: Invalid value: {}: selects by nothing; leave the key out to match any, or give it matchLabels or matchExpressions"},
		"unknown key with dots":    {doc: "restore: {example.com/x: 1}", err: "restore[example.com/x]: Forbidden: unknown key; valid keys: deletionPolicy, drivers, snapshotClasses, volumesWithoutData"},
		"unknown key of a driver":  {doc: "restore: {drivers: [{from: a, to: b, skip: true}]}", err: "restore.drivers[0].skip: Forbidden: unknown key; valid keys: from, to"},
		"unknown key of a mapping": {doc: "restore: {snapshotClasses: [{from: a, to: b, drop: true}]}", err: "restore.snapshotClasses[0].drop: Forbidden: unknown key; valid keys: from, skip, to"},
		"a map for a list":         {doc: "snapshotClasses: {class: a}", err: `snapshotClasses: Invalid value: {"class":"a"}: must be a list`},
		"a string for a rule":      {doc: "snapshotClasses: [a]", err: `snapshotClasses[0]: Invalid value: "a": must be a map with the keys: class, match`},
		"a string for labels":      {doc: "snapshotClasses: [{class: a, match: {claims: {matchLabels: x}}}]", err: `snapshotClasses[0].match.claims.matchLabels: Invalid value: "x": must be a map`},
		"a truth for a label":      {doc: "snapshotClasses: [{class: a, match: {claims: {matchLabels: {a.b/c: true}}}}]", err: "snapshotClasses[0].match.claims.matchLabels[a.b/c]: Invalid value: true: must be a string"},
		"a number for a class":     {doc: "snapshotClasses: [{class: 5}]", err: "snapshotClasses[0].class: Invalid value: 5: must be a string"},
		"a string for a truth":     {doc: `restore: {snapshotClasses: [{from: a, skip: "true"}]}`, err: `restore.snapshotClasses[0].skip: Invalid value: "true": must be true or false`},
		"all values of another kind": {doc: "snapshotClasses: [{class: 5, name: a}]\nrestore: 7", err: "restore: Invalid value: 7: must be a map with the keys: deletionPolicy, drivers, snapshotClasses, volumesWithoutData\n" +
			"snapshotClasses[0].class: Invalid value: 5: must be a string\n" +
			"snapshotClasses[0].name: Forbidden: unknown key; valid keys: class, match"},
		"keys and values at one time": {doc: "snapshotClasses: [{klass: a}]", err: "snapshotClasses[0].klass: Forbidden: unknown key; valid keys: class, match\n" +
			"snapshotClasses[0].class: Required value: the name of a VolumeSnapshotClass"},

		"no quantity":              {doc: "helperPods: {resources: {limits: {cpu: much}}}", err: `helperPods.resources.limits.cpu: Invalid value: "much": must be a quantity such as 100m or 64Mi`},
		"a quantity below 0":       {doc: "helperPods: {resources: {limits: {cpu: -1}}}", err: "helperPods.resources.limits.cpu: Invalid value: -1: must be a quantity such as 100m or 64Mi"},
		"more than the limit":      {doc: "helperPods: {resources: {requests: {cpu: 2, example.com/gpu: 2}, limits: {cpu: 1, example.com/gpu: 2}}}", err: `helperPods.resources.requests.cpu: Invalid value: "2": must not be more than the limit, 1`},
		"unknown key of resources": {doc: "helperPods: {resources: {limit: {cpu: 1}}}", err: "helperPods.resources.limit: Forbidden: unknown key; valid keys: claims, limits, requests"},
		"a user by name":           {doc: "helperPods: {securityContext: {runAsUser: nobody}}", err: `helperPods.securityContext.runAsUser: Invalid value: "nobody": must be a whole number`},
		"all pods privileged":      {doc: "helperPods: {securityContext: {privileged: true}}", err: "helperPods.securityContext.privileged: Forbidden: must not be true; use the podOverride of the one blueprint that needs it"},
		"defaults of helper pods":  {doc: "helperPods: {resources: {limits: {memory: 1Gi, cpu: 0.5}}, securityContext: {runAsUser: 1000, capabilities: {drop: [ALL]}, seccompProfile: {type: Localhost, localhostProfile: a.json}}}"},
		"none of the helper pods":  {doc: "helperPods: {resources: {}}"},

		"null rule":       {doc: "snapshotClasses: [null]", err: "snapshotClasses[0].class: Required value: the name of a VolumeSnapshotClass"},
		"bad class":       {doc: "snapshotClasses: [{class: Gold}]", err: `snapshotClasses[0].class: Invalid value: "Gold": must be the name of a VolumeSnapshotClass: ` + subdomain},
		"bad driver":      {doc: "snapshotClasses: [{class: a, match: {drivers: [a, 'csi.*']}}]", err: `snapshotClasses[0].match.drivers[1]: Invalid value: "csi.*": must be the name of a CSI driver: ` + subdomain},
		"long driver":     {doc: "snapshotClasses: [{class: a, match: {drivers: [a123456789.a123456789.a123456789.a123456789.a123456789.a1234567]}}]"},
		"too long driver": {doc: "snapshotClasses: [{class: a, match: {drivers: [a123456789.a123456789.a123456789.a123456789.a123456789.a123456789]}}]", err: `snapshotClasses[0].match.drivers[0]: Invalid value: "a123456789.a123456789.a123456789.a123456789.a123456789.a123456789": must be the name of a CSI driver: must be no more than 63 characters`},
		"empty driver":    {doc: "snapshotClasses: [{class: a, match: {drivers: ['']}}]", err: "snapshotClasses[0].match.drivers[0]: Required value: the name of a CSI driver"},
		"no drivers":      {doc: "snapshotClasses: [{class: a, match: {drivers: []}}]", err: "snapshotClasses[0].match.drivers: Invalid value: []: matches no volume; leave the key out to match any"},
		"no namespaces":   {doc: "snapshotClasses: [{class: a, match: {namespaces: []}}]", err: "snapshotClasses[0].match.namespaces: Invalid value: []: matches no volume; leave the key out to match any"},
		"bad glob":        {doc: "snapshotClasses: [{class: a, match: {storageClasses: [ok, '[a-']}}]", err: `snapshotClasses[0].match.storageClasses[1]: Invalid value: "[a-": must be a glob: * for any characters, ? for one, [a-z] for one of these, \ before a character that stands for itself`},
		"bad glob, later": {doc: "snapshotClasses: [{class: a, match: {namespaces: ['b[']}}]", err: `snapshotClasses[0].match.namespaces[0]: Invalid value: "b[": must be a glob: * for any characters, ? for one, [a-z] for one of these, \ before a character that stands for itself`},
		"empty glob":      {doc: "snapshotClasses: [{class: a, match: {namespaces: ['']}}]", err: `snapshotClasses[0].match.namespaces[0]: Required value: a name or a glob such as "fast-*"`},
		"bad selector":    {doc: "snapshotClasses: [{class: a, match: {claims: {matchExpressions: [{key: a, operator: Equals, values: [b]}]}}}]", err: `snapshotClasses[0].match.claims.matchExpressions[0].operator: Invalid value: "Equals": not a valid selector operator`},
		"bad label":       {doc: "snapshotClasses: [{class: a, match: {backups: {matchLabels: {'a b': c}}}}]", err: `snapshotClasses[0].match.backups.matchLabels: Invalid value: "a b": name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')`},
		"empty selector":  {doc: "snapshotClasses: [{class: a, match: {backups: {}}}]", err: "snapshotClasses[0].match.backups: Invalid value: {}: selects by nothing; leave the key out to match any, or give it matchLabels or matchExpressions"},
		"never reached": {doc: "snapshotClasses: [{class: a, match: {drivers: [x]}}, {class: b}, {class: c, match: {drivers: [z]}}, {class: d}]", err: "snapshotClasses[2]: Forbidden: never reached: snapshotClasses[1] matches every volume, and the first match wins; put it last\n" +
			"snapshotClasses[3]: Forbidden: never reached: snapshotClasses[1] matches every volume, and the first match wins; put it last"},
		"behind wildcards": {doc: "snapshotClasses: [{class: a, match: {namespaces: ['*']}}, {class: b}]", err: "snapshotClasses[1]: Forbidden: never reached: snapshotClasses[0] matches every volume, and the first match wins; put it last"},

		"driver without to":    {doc: "restore: {drivers: [{from: a}]}", err: "restore.drivers[0].to: Required value: the name of a CSI driver"},
		"driver from twice":    {doc: "restore: {drivers: [{from: a, to: b}, {from: a, to: c}]}", err: `restore.drivers[1].from: Duplicate value: "a"`},
		"driver to itself":     {doc: "restore: {drivers: [{from: a, to: a}]}", err: `restore.drivers[0].to: Invalid value: "a": is the same as from, which changes nothing; remove the entry`},
		"driver chain":         {doc: "restore: {drivers: [{from: a, to: b}, {from: b, to: c}]}", err: `restore.drivers[0].to: Invalid value: "b": restore.drivers[1] renames it to c; a name is mapped once, so write to: c for a, or remove one of them`},
		"driver chain, upward": {doc: "restore: {drivers: [{from: b, to: c}, {from: a, to: b}]}", err: `restore.drivers[1].to: Invalid value: "b": restore.drivers[0] renames it to c; a name is mapped once, so write to: c for a, or remove one of them`},
		"drivers swapped": {doc: "restore: {drivers: [{from: a, to: b}, {from: b, to: a}]}", err: "restore.drivers[0].to: Invalid value: \"b\": restore.drivers[1] renames it to a; a name is mapped once, so keep the entry for the direction of this restore\n" +
			"restore.drivers[1].to: Invalid value: \"a\": restore.drivers[0] renames it to b; a name is mapped once, so keep the entry for the direction of this restore"},
		"class from twice":        {doc: "restore: {snapshotClasses: [{from: a, to: b}, {from: a, skip: true}]}", err: `restore.snapshotClasses[1].from: Duplicate value: "a"`},
		"class chain":             {doc: "restore: {snapshotClasses: [{from: a, to: b}, {from: b, to: c}]}", err: `restore.snapshotClasses[0].to: Invalid value: "b": restore.snapshotClasses[1] renames it to c; a name is mapped once, so write to: c for a, or remove one of them`},
		"class to itself":         {doc: "restore: {snapshotClasses: [{from: a, to: a}]}", err: `restore.snapshotClasses[0].to: Invalid value: "a": is the same as from, which changes nothing; remove the entry`},
		"class to one that stays": {doc: "restore: {snapshotClasses: [{from: a, to: b}, {from: b, to: b}]}", err: `restore.snapshotClasses[1].to: Invalid value: "b": is the same as from, which changes nothing; remove the entry`},
		"class to and skip":       {doc: "restore: {snapshotClasses: [{from: a, to: b, skip: true}]}", err: "restore.snapshotClasses[0].skip: Forbidden: excludes to: b; a VolumeSnapshotClass is renamed or left out, so remove one of them"},
		"class neither":           {doc: "restore: {snapshotClasses: [{from: a, skip: false}]}", err: "restore.snapshotClasses[0].to: Required value: a name in this cluster; or add skip: true to leave the class out"},
		"class without from":      {doc: "restore: {snapshotClasses: [{to: b}]}", err: "restore.snapshotClasses[0].from: Required value: the name of a VolumeSnapshotClass"},
		"bad class of the map":    {doc: "restore: {snapshotClasses: [{from: a, to: B}]}", err: `restore.snapshotClasses[0].to: Invalid value: "B": must be the name of a VolumeSnapshotClass: ` + subdomain},
		"local snapshots": {doc: "localSnapshots: [{policy: keepLast}, {policy: keep}, {policy: delete, count: 1}]", err: "localSnapshots[1]: Forbidden: never reached: localSnapshots[0] matches every volume, and the first match wins; put it last\n" +
			"localSnapshots[2]: Forbidden: never reached: localSnapshots[0] matches every volume, and the first match wins; put it last\n" +
			"localSnapshots[0].count: Invalid value: 0: must be at least 1 for policy: keepLast; policy: delete keeps none\n" +
			"localSnapshots[1].policy: Unsupported value: \"keep\": supported values: \"delete\", \"retain\", \"keepLast\"\n" +
			"localSnapshots[2].count: Invalid value: 1: is for policy: keepLast only"},
		"half a snapshot": {doc: "localSnapshots: [{policy: keepLast, count: 1.5}]", err: "localSnapshots[0].count: Invalid value: 1.5: must be a whole number"},
		"bad profile":     {doc: "drivers: [{name: A B, exports: {always: true, when: [{value: x}]}, restoreFrom: backup, quiesce: true, accessModes: [RWO]}]", err: "drivers[0].quiesce: Invalid value: true: must be a string"},
		"bad words in a profile": {doc: "drivers: [{name: a, exports: {always: true, when: [{value: x}]}, restoreFrom: backup, quiesce: yes please, freeze: on demand, accessModes: [RWO]}]", err: "drivers[0].exports.when: Forbidden: excludes always: true; remove one of them\n" +
			"drivers[0].exports.when[0].parameter: Required value: the key of a parameter of a VolumeSnapshotClass\n" +
			"drivers[0].restoreFrom: Unsupported value: \"backup\": supported values: \"any\", \"export\"\n" +
			"drivers[0].quiesce: Unsupported value: \"yes please\": supported values: \"optional\", \"required\"\n" +
			"drivers[0].freeze: Unsupported value: \"on demand\": supported values: \"always\", \"flush\", \"driver\"\n" +
			"drivers[0].accessModes[0]: Unsupported value: \"RWO\": supported values: \"ReadWriteOnce\", \"ReadOnlyMany\", \"ReadWriteMany\", \"ReadWriteOncePod\""},
		"profiles twice": {doc: "drivers: [{name: a}, {name: a, accessModes: []}]", err: "drivers[1].name: Duplicate value: \"a\"\n" +
			"drivers[1].accessModes: Invalid value: []: no volume could be snapshotted; leave the key out for any"},
		"data movers": {doc: "dataMovers: [{}, {name: velero}, {name: a}, {name: a}]", err: "dataMovers[3].name: Duplicate value: \"a\"\n" +
			"dataMovers[0].name: Required value: the value of spec.datamover of the Backup\n" +
			"dataMovers[1].name: Invalid value: \"velero\": its snapshots are always deleted; to keep some, use localSnapshots"},
		"bad volumes":         {doc: "restore: {volumesWithoutData: empty}", err: `restore.volumesWithoutData: Unsupported value: "empty": supported values: "velero", "provision", "refuse"`},
		"bad deletion policy": {doc: "restore: {deletionPolicy: delete}", err: `restore.deletionPolicy: Unsupported value: "delete": supported values: "Retain", "Delete"`},
		"no node-level thaw":  {doc: "nodeThaw:"},
		"node-level thaw":     {doc: "nodeThaw: {image: a, kubeletDirectory: /data/kubelet}"},
		"no image":            {doc: "nodeThaw: {}", err: "nodeThaw.image: Required value: the image of this plugin, as given to velero plugin add; leave nodeThaw out to switch it off"},
		"bad image": {doc: "nodeThaw: {image: 'a b', kubeletDirectory: /x/}", err: "nodeThaw.image: Invalid value: \"a b\": must be the name of an image, without blanks\n" +
			"nodeThaw.kubeletDirectory: Invalid value: \"/x/\": must be an absolute path such as /var/lib/kubelet, without a slash at its end"},
		"root of the node":    {doc: "nodeThaw: {image: a, kubeletDirectory: /}", err: `nodeThaw.kubeletDirectory: Invalid value: "/": must be an absolute path such as /var/lib/kubelet, without a slash at its end`},
		"unknown key of thaw": {doc: "nodeThaw: {image: a, node: b}", err: "nodeThaw.node: Forbidden: unknown key; valid keys: image, kubeletDirectory"},
		"errors of several sections": {doc: "blueprintNamespaces: [a, a]\nsnapshotClasses: [{}]\nrestore: {deletionPolicy: x}", err: "blueprintNamespaces[1]: Duplicate value: \"a\"\n" +
			"snapshotClasses[0].class: Required value: the name of a VolumeSnapshotClass\n" +
			"restore.deletionPolicy: Unsupported value: \"x\": supported values: \"Retain\", \"Delete\""},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Decode(configMap("stillpoint", "version: v1\n"+test.doc))
			if test.err == "" {
				require.NoError(t, err)
				return
			}
			require.EqualError(t, err, "ConfigMap velero/stillpoint: config.yaml: "+test.err)
		})
	}
}

func TestMatches(t *testing.T) {
	gold := &metav1.LabelSelector{MatchLabels: map[string]string{"tier": "gold"}}
	for name, test := range map[string]struct {
		match Match
		want  bool
	}{
		"empty":               {Match{}, true},
		"driver":              {Match{Drivers: []string{"x", "csi.example.com"}}, true},
		"other driver":        {Match{Drivers: []string{"csi.example.org"}}, false},
		"drivers are no glob": {Match{Drivers: []string{"csi.*"}}, false},
		"driver of no list":   {Match{Drivers: []string{}}, false},
		"storage class":       {Match{StorageClasses: []string{"slow", "fast-*"}}, true},
		"other storage class": {Match{StorageClasses: []string{"fast"}}, false},
		"namespace":           {Match{Namespaces: []string{"sh?p"}}, true},
		"namespace range":     {Match{Namespaces: []string{"[a-s]hop"}}, true},
		"other namespace":     {Match{Namespaces: []string{"shop-*"}}, false},
		"bad glob":            {Match{Namespaces: []string{"["}}, false},
		"claim":               {Match{Claims: gold}, true},
		"backup":              {Match{Backups: gold}, false},
		"backup by absence":   {Match{Backups: &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "tier", Operator: "DoesNotExist"}}}}, true},
		"bad selector":        {Match{Claims: &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "tier", Operator: "x"}}}}, false},
		"all hold":            {Match{Drivers: []string{"csi.example.com"}, StorageClasses: []string{"*"}, Namespaces: []string{"shop"}, Claims: gold}, true},
		"but one":             {Match{Drivers: []string{"csi.example.com"}, StorageClasses: []string{"*"}, Namespaces: []string{"office"}, Claims: gold}, false},
	} {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, test.want, test.match.Matches("csi.example.com", "fast-ssd", "shop", map[string]string{"tier": "gold"}, map[string]string{"app": "x"}))
		})
	}
	require.True(t, Match{StorageClasses: []string{"*"}}.Matches("d", "", "shop", nil, nil), "a claim without a StorageClass")
	require.False(t, Match{StorageClasses: []string{"?*"}}.Matches("d", "", "shop", nil, nil))
}

func TestByDriver(t *testing.T) {
	selector := &metav1.LabelSelector{}
	require.True(t, Match{}.ByDriver())
	require.True(t, Match{Drivers: []string{"x"}}.ByDriver())
	for _, match := range []Match{{StorageClasses: []string{"*"}}, {Namespaces: []string{"*"}}, {Claims: selector}, {Backups: selector}} {
		require.False(t, match.ByDriver(), "%+v", match)
	}
}

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

const (
	subdomain  = `a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')`
	aGlob      = "must be a glob: * for any characters, ? for one, [a-z] for one of these, \\ before a character that stands for itself"
	twoRenames = "a name is mapped once, so say what is meant"
)

func TestFaults(t *testing.T) {
	for name, test := range map[string]struct {
		doc string
		err string
	}{
		"nulls":           {doc: "snapshotClasses:\nrestore:"},
		"nulls in a rule": {doc: "snapshotClasses: [{match: {drivers: , storageClasses: , claims: }, class: a}]\nrestore: {drivers: , deletionPolicy: }"},

		"unknown key of a rule":  {doc: "snapshotClasses: [{class: a, name: b}]", err: "snapshotClasses[0].name is an unknown key; valid keys: class, match"},
		"unknown key of a match": {doc: "snapshotClasses: [{class: a, match: {driver: x}}]", err: "snapshotClasses[0].match.driver is an unknown key; valid keys: backups, claims, drivers, namespaces, storageClasses"},
		"capital in a key":       {doc: "snapshotClasses: [{Class: a, class: b}]", err: "snapshotClasses[0].Class is an unknown key; valid keys: class, match"},
		"unknown key of a selector": {doc: "snapshotClasses: [{class: a, match: {claims: {app: x}}}]", err: "snapshotClasses[0].match.claims.app is an unknown key; valid keys: matchExpressions, matchLabels\n" +
			"snapshotClasses[0].match.claims is {}, which selects by nothing; leave the key out to match any, or give it matchLabels or matchExpressions"},
		"unknown key with dots":       {doc: "restore: {example.com/x: 1}", err: `restore["example.com/x"] is an unknown key; valid keys: deletionPolicy, drivers, snapshotClasses, volumesWithoutData`},
		"unknown key of a driver":     {doc: "restore: {drivers: [{from: a, to: b, skip: true}]}", err: "restore.drivers[0].skip is an unknown key; valid keys: from, to"},
		"unknown key of a mapping":    {doc: "restore: {snapshotClasses: [{from: a, to: b, drop: true}]}", err: "restore.snapshotClasses[0].drop is an unknown key; valid keys: from, skip, to"},
		"a map for a list":            {doc: "snapshotClasses: {class: a}", err: `snapshotClasses is {"class":"a"}, must be a list`},
		"a string for a rule":         {doc: "snapshotClasses: [a]", err: `snapshotClasses[0] is "a", must be a map with the keys: class, match`},
		"a string for labels":         {doc: "snapshotClasses: [{class: a, match: {claims: {matchLabels: x}}}]", err: `snapshotClasses[0].match.claims.matchLabels is "x", must be a map`},
		"a truth for a label":         {doc: "snapshotClasses: [{class: a, match: {claims: {matchLabels: {a.b/c: true}}}}]", err: `snapshotClasses[0].match.claims.matchLabels["a.b/c"] is true, must be a string`},
		"a number for a class":        {doc: "snapshotClasses: [{class: 5}]", err: `snapshotClasses[0].class is 5, must be a string`},
		"a string for a truth":        {doc: `restore: {snapshotClasses: [{from: a, skip: "true"}]}`, err: `restore.snapshotClasses[0].skip is "true", must be true or false`},
		"all values of another kind":  {doc: "snapshotClasses: [{class: 5, name: a}]\nrestore: 7", err: "restore is 7, must be a map with the keys: deletionPolicy, drivers, snapshotClasses, volumesWithoutData\nsnapshotClasses[0].class is 5, must be a string\nsnapshotClasses[0].name is an unknown key; valid keys: class, match"},
		"keys and values at one time": {doc: "snapshotClasses: [{klass: a}]", err: "snapshotClasses[0].klass is an unknown key; valid keys: class, match\nsnapshotClasses[0].class is missing; it is the name of a VolumeSnapshotClass"},

		"no quantity":              {doc: "helperPods: {resources: {limits: {cpu: much}}}", err: `helperPods.resources.limits.cpu is "much", must be a quantity such as 100m or 64Mi`},
		"a quantity below 0":       {doc: "helperPods: {resources: {limits: {cpu: -1}}}", err: `helperPods.resources.limits.cpu is -1, must be a quantity such as 100m or 64Mi`},
		"more than the limit":      {doc: "helperPods: {resources: {requests: {cpu: 2, example.com/gpu: 2}, limits: {cpu: 1, example.com/gpu: 2}}}", err: `helperPods.resources.requests.cpu is 2, must not be more than the limit, 1`},
		"unknown key of resources": {doc: "helperPods: {resources: {limit: {cpu: 1}}}", err: `helperPods.resources.limit is an unknown key; valid keys: claims, limits, requests`},
		"a user by name":           {doc: "helperPods: {securityContext: {runAsUser: nobody}}", err: `helperPods.securityContext.runAsUser is "nobody", must be a whole number`},
		"all pods privileged":      {doc: "helperPods: {securityContext: {privileged: true}}", err: `helperPods.securityContext.privileged is true, must be the podOverride of the one blueprint that needs it`},
		"defaults of helper pods":  {doc: "helperPods: {resources: {limits: {memory: 1Gi, cpu: 0.5}}, securityContext: {runAsUser: 1000, capabilities: {drop: [ALL]}, seccompProfile: {type: Localhost, localhostProfile: a.json}}}"},
		"none of the helper pods":  {doc: "helperPods: {resources: {}}"},

		"null rule":        {doc: "snapshotClasses: [null]", err: "snapshotClasses[0].class is missing; it is the name of a VolumeSnapshotClass"},
		"bad class":        {doc: "snapshotClasses: [{class: Gold}]", err: `snapshotClasses[0].class is "Gold", must be the name of a VolumeSnapshotClass: ` + subdomain},
		"bad driver":       {doc: "snapshotClasses: [{class: a, match: {drivers: [a, 'csi.*']}}]", err: `snapshotClasses[0].match.drivers[1] is "csi.*", must be the name of a CSI driver: ` + subdomain},
		"long driver":      {doc: "snapshotClasses: [{class: a, match: {drivers: [a123456789.a123456789.a123456789.a123456789.a123456789.a1234567]}}]"},
		"too long driver":  {doc: "snapshotClasses: [{class: a, match: {drivers: [a123456789.a123456789.a123456789.a123456789.a123456789.a123456789]}}]", err: `snapshotClasses[0].match.drivers[0] is "a123456789.a123456789.a123456789.a123456789.a123456789.a123456789", must be the name of a CSI driver: must be no more than 63 characters`},
		"empty driver":     {doc: "snapshotClasses: [{class: a, match: {drivers: ['']}}]", err: `snapshotClasses[0].match.drivers[0] is missing; it is the name of a CSI driver`},
		"no drivers":       {doc: "snapshotClasses: [{class: a, match: {drivers: []}}]", err: `snapshotClasses[0].match.drivers is [], which matches no volume; leave the key out to match any`},
		"no namespaces":    {doc: "snapshotClasses: [{class: a, match: {namespaces: []}}]", err: `snapshotClasses[0].match.namespaces is [], which matches no volume; leave the key out to match any`},
		"bad glob":         {doc: "snapshotClasses: [{class: a, match: {storageClasses: [ok, '[a-']}}]", err: `snapshotClasses[0].match.storageClasses[1] is "[a-", ` + aGlob},
		"bad glob, later":  {doc: "snapshotClasses: [{class: a, match: {namespaces: ['b[']}}]", err: `snapshotClasses[0].match.namespaces[0] is "b[", ` + aGlob},
		"empty glob":       {doc: "snapshotClasses: [{class: a, match: {namespaces: ['']}}]", err: `snapshotClasses[0].match.namespaces[0] is empty, must be a name or a glob such as "fast-*"`},
		"bad selector":     {doc: "snapshotClasses: [{class: a, match: {claims: {matchExpressions: [{key: a, operator: Equals, values: [b]}]}}}]", err: `snapshotClasses[0].match.claims is {"matchExpressions":[{"key":"a","operator":"Equals","values":["b"]}]}, must be a label selector: "Equals" is not a valid label selector operator`},
		"bad label":        {doc: "snapshotClasses: [{class: a, match: {backups: {matchLabels: {'a b': c}}}}]", err: `snapshotClasses[0].match.backups is {"matchLabels":{"a b":"c"}}, must be a label selector: key: Invalid value: "a b": name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')`},
		"empty selector":   {doc: "snapshotClasses: [{class: a, match: {backups: {}}}]", err: "snapshotClasses[0].match.backups is {}, which selects by nothing; leave the key out to match any, or give it matchLabels or matchExpressions"},
		"never reached":    {doc: "snapshotClasses: [{class: a, match: {drivers: [x]}}, {class: b}, {class: c, match: {drivers: [z]}}, {class: d}]", err: "snapshotClasses[2] is never reached: snapshotClasses[1] matches every volume, and the first match wins; put it last\nsnapshotClasses[3] is never reached: snapshotClasses[1] matches every volume, and the first match wins; put it last"},
		"behind wildcards": {doc: "snapshotClasses: [{class: a, match: {namespaces: ['*']}}, {class: b}]", err: "snapshotClasses[1] is never reached: snapshotClasses[0] matches every volume, and the first match wins; put it last"},

		"driver without to":    {doc: "restore: {drivers: [{from: a}]}", err: "restore.drivers[0].to is missing; it is the name of a CSI driver"},
		"driver from twice":    {doc: "restore: {drivers: [{from: a, to: b}, {from: a, to: c}]}", err: `restore.drivers[1].from is "a", as is restore.drivers[0].from; remove one of them`},
		"driver to itself":     {doc: "restore: {drivers: [{from: a, to: a}]}", err: `restore.drivers[0] has "a" both as from and as to, which changes nothing; remove it`},
		"driver chain":         {doc: "restore: {drivers: [{from: a, to: b}, {from: b, to: c}]}", err: "restore.drivers[0] makes b of a, and restore.drivers[1] makes c of b; " + twoRenames + ": to: c for a, or remove one of them"},
		"driver chain, upward": {doc: "restore: {drivers: [{from: b, to: c}, {from: a, to: b}]}", err: "restore.drivers[1] makes b of a, and restore.drivers[0] makes c of b; " + twoRenames + ": to: c for a, or remove one of them"},
		"drivers swapped": {doc: "restore: {drivers: [{from: a, to: b}, {from: b, to: a}]}", err: "restore.drivers[0] makes b of a, and restore.drivers[1] makes a of b; " + twoRenames + ": keep the one for the direction of this restore\n" +
			"restore.drivers[1] makes a of b, and restore.drivers[0] makes b of a; " + twoRenames + ": keep the one for the direction of this restore"},
		"class from twice":        {doc: "restore: {snapshotClasses: [{from: a, to: b}, {from: a, skip: true}]}", err: `restore.snapshotClasses[1].from is "a", as is restore.snapshotClasses[0].from; remove one of them`},
		"class chain":             {doc: "restore: {snapshotClasses: [{from: a, to: b}, {from: b, to: c}]}", err: "restore.snapshotClasses[0] makes b of a, and restore.snapshotClasses[1] makes c of b; " + twoRenames + ": to: c for a, or remove one of them"},
		"class to itself":         {doc: "restore: {snapshotClasses: [{from: a, to: a}]}", err: `restore.snapshotClasses[0] has "a" both as from and as to, which changes nothing; remove it`},
		"class to one that stays": {doc: "restore: {snapshotClasses: [{from: a, to: b}, {from: b, to: b}]}", err: `restore.snapshotClasses[1] has "b" both as from and as to, which changes nothing; remove it`},
		"class to and skip":       {doc: "restore: {snapshotClasses: [{from: a, to: b, skip: true}]}", err: "restore.snapshotClasses[0] has both to: b and skip: true; a VolumeSnapshotClass is renamed or left out, so remove one of them"},
		"class neither":           {doc: "restore: {snapshotClasses: [{from: a, skip: false}]}", err: "restore.snapshotClasses[0] has neither to, a name in this cluster, nor skip: true, to leave it out; add one of them"},
		"class without from":      {doc: "restore: {snapshotClasses: [{to: b}]}", err: "restore.snapshotClasses[0].from is missing; it is the name of a VolumeSnapshotClass"},
		"bad class of the map":    {doc: "restore: {snapshotClasses: [{from: a, to: B}]}", err: `restore.snapshotClasses[0].to is "B", must be the name of a VolumeSnapshotClass: ` + subdomain},
		"local snapshots": {doc: "localSnapshots: [{policy: keepLast}, {policy: keep}, {policy: delete, count: 1}]", err: "localSnapshots[0].count is 0, must be at least 1 for keepLast; policy: delete keeps none\n" +
			"localSnapshots[1] is never reached: localSnapshots[0] matches every volume, and the first match wins; put it last\n" +
			"localSnapshots[1].policy is \"keep\", must be delete, retain or keepLast\n" +
			"localSnapshots[2] is never reached: localSnapshots[0] matches every volume, and the first match wins; put it last\n" +
			"localSnapshots[2].count is 1, which only policy: keepLast has"},
		"half a snapshot": {doc: "localSnapshots: [{policy: keepLast, count: 1.5}]", err: "localSnapshots[0].count is 1.5, must be a whole number"},
		"bad profile":     {doc: "drivers: [{name: A B, exports: {always: true, when: [{value: x}]}, restoreFrom: backup, quiesce: true, accessModes: [RWO]}]", err: "drivers[0].quiesce is true, must be a string"},
		"bad words in a profile": {doc: "drivers: [{name: a, exports: {always: true, when: [{value: x}]}, restoreFrom: backup, quiesce: yes please, freeze: on demand, accessModes: [RWO]}]", err: "drivers[0].exports has both always: true and when; all snapshots are exported or some are, so remove one of them\n" +
			"drivers[0].exports.when[0].parameter is missing; it is the key of a parameter of a VolumeSnapshotClass\n" +
			"drivers[0].restoreFrom is \"backup\", must be any or export\n" +
			"drivers[0].quiesce is \"yes please\", must be optional or required\n" +
			"drivers[0].freeze is \"on demand\", must be always, flush or driver\n" +
			"drivers[0].accessModes[0] is \"RWO\", must be one of [ReadWriteOnce ReadOnlyMany ReadWriteMany ReadWriteOncePod]"},
		"profiles twice":        {doc: "drivers: [{name: a}, {name: a, accessModes: []}]", err: "drivers[1].name is \"a\", as is drivers[0].name; remove one of them\ndrivers[1].accessModes is [], with which no volume can be snapshotted; leave the key out for any"},
		"data movers":           {doc: "dataMovers: [{}, {name: velero}, {name: a}, {name: a}]", err: "dataMovers[0].name is missing; it is what the Backup's spec.datamover has\ndataMovers[1].name is \"velero\", whose snapshots are always deleted; to keep some, use localSnapshots\ndataMovers[3].name is \"a\", as is dataMovers[2].name; remove one of them"},
		"bad volumes":           {doc: "restore: {volumesWithoutData: empty}", err: `restore.volumesWithoutData is "empty", must be velero, provision or refuse`},
		"bad deletion policy":   {doc: "restore: {deletionPolicy: delete}", err: `restore.deletionPolicy is "delete", must be Retain or Delete; leave the key out for Velero's`},
		"no node-level thaw":    {doc: "nodeThaw:"},
		"node-level thaw":       {doc: "nodeThaw: {image: a, kubeletDirectory: /data/kubelet}"},
		"no image":              {doc: "nodeThaw: {}", err: "nodeThaw.image is missing; it is the image of this plugin, as given to velero plugin add; leave nodeThaw out to switch it off"},
		"bad image":             {doc: "nodeThaw: {image: 'a b', kubeletDirectory: /x/}", err: "nodeThaw.image is \"a b\", must be the name of an image, without blanks\nnodeThaw.kubeletDirectory is \"/x/\", must be an absolute path such as /var/lib/kubelet, without a slash at its end"},
		"root of the node":      {doc: "nodeThaw: {image: a, kubeletDirectory: /}", err: "nodeThaw.kubeletDirectory is \"/\", must be an absolute path such as /var/lib/kubelet, without a slash at its end"},
		"unknown key of thaw":   {doc: "nodeThaw: {image: a, node: b}", err: "nodeThaw.node is an unknown key; valid keys: image, kubeletDirectory"},
		"faults of all corners": {doc: "blueprintNamespaces: [a, a]\nsnapshotClasses: [{}]\nrestore: {deletionPolicy: x}", err: "blueprintNamespaces[1] is \"a\", as is blueprintNamespaces[0]\nsnapshotClasses[0].class is missing; it is the name of a VolumeSnapshotClass\nrestore.deletionPolicy is \"x\", must be Retain or Delete; leave the key out for Velero's"},
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

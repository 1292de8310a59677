package externalstorage

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func pv(source corev1.PersistentVolumeSource, annotations map[string]string) *corev1.PersistentVolume {
	return &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: "pv", Annotations: annotations},
		Spec:       corev1.PersistentVolumeSpec{PersistentVolumeSource: source, ClaimRef: &corev1.ObjectReference{Namespace: "shop", Name: "data"}},
		Status:     corev1.PersistentVolumeStatus{Phase: corev1.VolumeBound},
	}
}

func unbound(pv *corev1.PersistentVolume) *corev1.PersistentVolume {
	pv.Status.Phase = corev1.VolumeReleased
	return pv
}

var (
	hostPath = corev1.PersistentVolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/data"}}
	// As the provisioner of OpenEBS 0.7 to 1.x creates them for cStor.
	iscsi = corev1.PersistentVolumeSource{ISCSI: &corev1.ISCSIPersistentVolumeSource{
		TargetPortal: "10.107.19.62:3260", IQN: "iqn.2016-09.com.openebs.cstor:pvc-6e3d9246-8a92-11e9-9253-525400261060", FSType: "ext4",
	}}
	otherISCSI       = corev1.PersistentVolumeSource{ISCSI: &corev1.ISCSIPersistentVolumeSource{IQN: "iqn.2010-01.com.solidfire:x"}}
	openEBSVolume    = map[string]string{openEBSIdentity: "k8s-worker3", "openebs.io/cas-type": "cstor", provisionedBy: "openebs.io/provisioner-iscsi"}
	csiSource        = corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{Driver: "d"}}
	promotedByOthers = map[string]string{provisionedBy: promoter}
)

func TestTakes(t *testing.T) {
	for name, test := range map[string]struct {
		volume   *corev1.PersistentVolume
		config   map[string]string
		unserved bool
		want     bool
		reason   string
		fault    string
	}{
		"a directory of the node":     {volume: pv(hostPath, nil), want: true},
		"OpenEBS":                     {volume: pv(iscsi, openEBSVolume), want: true},
		"OpenEBS, made of a snapshot": {volume: pv(iscsi, promotedByOthers), config: map[string]string{"provisioners": "openebs.io/*", "volumeSources": "openebs"}, want: true},
		"iSCSI of others":             {volume: pv(otherISCSI, nil), reason: "the snapshot controller has no plugin for its source"},
		"CSI":                         {volume: pv(csiSource, nil), reason: "no plugin for its source"},
		"the API is not served":       {volume: pv(hostPath, nil), unserved: true, reason: "does not serve the API"},
		"another source":              {volume: pv(hostPath, nil), config: map[string]string{"volumeSources": "openebs, cinder"}, reason: "volumeSources does not include hostPath"},
		"the source":                  {volume: pv(hostPath, nil), config: map[string]string{"volumeSources": "openebs,hostPath"}, want: true},
		"the provisioner":             {volume: pv(iscsi, openEBSVolume), config: map[string]string{"provisioners": "a/*,openebs.io/*"}, want: true},
		"another provisioner":         {volume: pv(iscsi, openEBSVolume), config: map[string]string{"provisioners": "a/*"}, reason: `does not match "openebs.io/provisioner-iscsi"`},
		"no provisioner":              {volume: pv(hostPath, nil), config: map[string]string{"provisioners": "a/*"}, reason: `does not match ""`},
		"its own word":                {volume: pv(csiSource, map[string]string{VolumeAnnotation: "true"}), config: map[string]string{"volumeSources": "cinder"}, want: true},
		"its own word against":        {volume: pv(hostPath, map[string]string{VolumeAnnotation: "false"}), reason: "its annotation is \"false\""},
		"its own word, unserved":      {volume: pv(hostPath, map[string]string{VolumeAnnotation: "true"}), unserved: true, fault: "does not serve the API"},
		"no claim":                    {volume: unbound(pv(hostPath, nil)), reason: "it is not bound to a claim"},
		"no word":                     {volume: pv(hostPath, map[string]string{VolumeAnnotation: "yes"}), fault: `value "yes": must be "true" or "false"`},
	} {
		t.Run(name, func(t *testing.T) {
			options, err := parseLocation(test.config)
			require.NoError(t, err)
			ours, reason, err := options.takes(test.volume, !test.unserved)
			if test.fault != "" {
				require.ErrorContains(t, err, test.fault)
				return
			}
			require.NoError(t, err)
			assert.Equal(t, test.want, ours)
			assert.Contains(t, reason, test.reason)
		})
	}
}

func TestParseLocation(t *testing.T) {
	options, err := parseLocation(map[string]string{"credentialsFile": "/tmp/x", "provisioners": "openebs.io/*", "volumeSources": "hostPath", "promoterClass": "promoter", "timeout": "90s"})
	require.NoError(t, err)
	assert.Equal(t, struct {
		provisioners, volumeSources []string
		promoterClass               string
		timeout                     time.Duration
	}{[]string{"openebs.io/*"}, []string{"hostPath"}, "promoter", 90 * time.Second}, struct {
		provisioners, volumeSources []string
		promoterClass               string
		timeout                     time.Duration
	}{options.provisioners, options.volumeSources, options.promoterClass, options.timeout})
	options, err = parseLocation(nil)
	require.NoError(t, err)
	assert.Equal(t, 10*time.Minute, options.timeout)

	_, err = parseLocation(map[string]string{"snapshotClass": "x", "timeout": "-1s", "volumeSources": "hostpath", "provisioners": "["})
	for _, want := range []string{
		"key snapshotClass: unknown key; valid keys: provisioners, volumeSources, promoterClass, timeout",
		`key timeout: value "-1s"`, `unknown source "hostpath"; valid: awsElasticBlockStore, cinder, gcePersistentDisk, glusterfs, hostPath, openebs`, "key provisioners",
	} {
		require.ErrorContains(t, err, want)
	}
}

func TestPromoterClass(t *testing.T) {
	class := func(name, provisioner string) storagev1.StorageClass {
		return storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: name}, Provisioner: provisioner}
	}
	for name, test := range map[string]struct {
		classes     []storagev1.StorageClass
		named, want string
		fault       string
	}{
		"the only one":     {classes: []storagev1.StorageClass{class("a", "x"), class("b", promoter)}, want: "b"},
		"the one named":    {classes: []storagev1.StorageClass{class("a", promoter), class("b", promoter)}, named: "a", want: "a"},
		"several":          {classes: []storagev1.StorageClass{class("a", promoter), class("b", promoter)}, fault: "the StorageClasses a, b have"},
		"none":             {classes: []storagev1.StorageClass{class("a", "x")}, fault: "no StorageClass has the provisioner"},
		"not there":        {classes: []storagev1.StorageClass{class("a", promoter)}, named: "b", fault: "StorageClass b, which promoterClass of the VolumeSnapshotLocation names, does not exist"},
		"another's, named": {classes: []storagev1.StorageClass{class("a", "x"), class("b", promoter)}, named: "a", fault: "has the provisioner x, and must have"},
	} {
		t.Run(name, func(t *testing.T) {
			found, err := options{promoterClass: test.named}.promoter(test.classes)
			if test.fault != "" {
				require.ErrorContains(t, err, test.fault)
				return
			}
			require.NoError(t, err)
			assert.Equal(t, test.want, found.Name)
		})
	}
}

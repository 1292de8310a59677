package fake

import (
	"fmt"
	"slices"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v6/apis/volumesnapshot/v1"
	velerov1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v1"
	velerov2alpha1 "github.com/vmware-tanzu/velero/pkg/apis/velero/v2alpha1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/scheme"
)

// Kind is a kind of objects that the server keeps.
type Kind struct {
	Group, Version, Resource, Kind string
	Namespaced                     bool
	// Status reports whether the status has a subresource of its own, and cannot
	// be written beside the rest.
	Status bool
}

func (k Kind) resource() schema.GroupVersionResource {
	return schema.GroupVersionResource{Group: k.Group, Version: k.Version, Resource: k.Resource}
}

// builtin are the kinds that every server knows.
var builtin = []Kind{
	{"", "v1", "namespaces", "Namespace", false, true},
	{"", "v1", "nodes", "Node", false, true},
	{"", "v1", "persistentvolumes", "PersistentVolume", false, true},
	{"", "v1", "persistentvolumeclaims", "PersistentVolumeClaim", true, true},
	{"", "v1", "pods", "Pod", true, true},
	{"", "v1", "configmaps", "ConfigMap", true, false},
	{"", "v1", "secrets", "Secret", true, false},
	{"", "v1", "services", "Service", true, true},
	{"", "v1", "serviceaccounts", "ServiceAccount", true, false},
	{"", "v1", "events", "Event", true, false},
	{"", "v1", "replicationcontrollers", "ReplicationController", true, true},
	{"apps", "v1", "deployments", "Deployment", true, true},
	{"apps", "v1", "statefulsets", "StatefulSet", true, true},
	{"apps", "v1", "daemonsets", "DaemonSet", true, true},
	{"apps", "v1", "replicasets", "ReplicaSet", true, true},
	{"apps", "v1", "controllerrevisions", "ControllerRevision", true, false},
	{"batch", "v1", "jobs", "Job", true, true},
	{"batch", "v1", "cronjobs", "CronJob", true, true},
	{"autoscaling", "v2", "horizontalpodautoscalers", "HorizontalPodAutoscaler", true, true},
	{"coordination.k8s.io", "v1", "leases", "Lease", true, false},
	{"storage.k8s.io", "v1", "storageclasses", "StorageClass", false, false},
	{"storage.k8s.io", "v1", "csidrivers", "CSIDriver", false, false},
	{"storage.k8s.io", "v1", "volumeattachments", "VolumeAttachment", false, true},
	{"snapshot.storage.k8s.io", "v1", "volumesnapshots", "VolumeSnapshot", true, true},
	{"snapshot.storage.k8s.io", "v1", "volumesnapshotcontents", "VolumeSnapshotContent", false, true},
	{"snapshot.storage.k8s.io", "v1", "volumesnapshotclasses", "VolumeSnapshotClass", false, false},
	{"velero.io", "v1", "backups", "Backup", true, false},
	{"velero.io", "v1", "restores", "Restore", true, false},
	{"velero.io", "v1", "schedules", "Schedule", true, false},
	{"velero.io", "v1", "deletebackuprequests", "DeleteBackupRequest", true, false},
	{"velero.io", "v1", "backupstoragelocations", "BackupStorageLocation", true, false},
	{"velero.io", "v1", "volumesnapshotlocations", "VolumeSnapshotLocation", true, false},
	{"velero.io", "v1", "podvolumebackups", "PodVolumeBackup", true, false},
	{"velero.io", "v1", "podvolumerestores", "PodVolumeRestore", true, false},
	{"velero.io", "v2alpha1", "datauploads", "DataUpload", true, false},
	{"velero.io", "v2alpha1", "datadownloads", "DataDownload", true, false},
}

// known converts between bodies and typed objects.
var known = func() *runtime.Scheme {
	s := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{scheme.AddToScheme, snapshotv1.AddToScheme, velerov1.AddToScheme, velerov2alpha1.AddToScheme} {
		if err := add(s); err != nil {
			panic(err)
		}
	}
	return s
}()

func (a *API) kindOf(gvk schema.GroupVersionKind) (Kind, bool) {
	for _, k := range a.kinds {
		if k.Group == gvk.Group && k.Version == gvk.Version && k.Kind == gvk.Kind {
			return k, true
		}
	}
	return Kind{}, false
}

func (a *API) kindAt(r schema.GroupVersionResource) (Kind, bool) {
	for _, k := range a.kinds {
		if k.resource() == r {
			return k, true
		}
	}
	return Kind{}, false
}

func toUnstructured(object runtime.Object) (*unstructured.Unstructured, error) {
	if u, ok := object.(*unstructured.Unstructured); ok {
		return u.DeepCopy(), nil
	}
	content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(object)
	if err != nil {
		return nil, fmt.Errorf("convert a %T: %w", object, err)
	}
	u := &unstructured.Unstructured{Object: content}
	if u.GetKind() == "" {
		gvks, _, err := known.ObjectKinds(object)
		if err != nil {
			return nil, err
		}
		u.SetGroupVersionKind(gvks[0])
	}
	return u, nil
}

// discover answers what discovery asks.
func (a *API) discover(path []string) any {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case len(path) == 1 && path[0] == "api":
		return metav1.APIVersions{TypeMeta: metav1.TypeMeta{Kind: "APIVersions"}, Versions: []string{"v1"}}
	case len(path) == 1 && path[0] == "apis":
		return a.groups()
	case len(path) == 2 && path[0] == "api":
		return a.resources(schema.GroupVersion{Version: path[1]})
	case len(path) == 3 && path[0] == "apis":
		return a.resources(schema.GroupVersion{Group: path[1], Version: path[2]})
	}
	return nil
}

func (a *API) groups() metav1.APIGroupList {
	list := metav1.APIGroupList{TypeMeta: metav1.TypeMeta{Kind: "APIGroupList", APIVersion: "v1"}}
	for _, k := range a.kinds {
		if k.Group == "" {
			continue
		}
		i := slices.IndexFunc(list.Groups, func(g metav1.APIGroup) bool { return g.Name == k.Group })
		version := metav1.GroupVersionForDiscovery{GroupVersion: k.Group + "/" + k.Version, Version: k.Version}
		if i < 0 {
			list.Groups = append(list.Groups, metav1.APIGroup{Name: k.Group, PreferredVersion: version, Versions: []metav1.GroupVersionForDiscovery{version}})
		} else if !slices.Contains(list.Groups[i].Versions, version) {
			list.Groups[i].Versions = append(list.Groups[i].Versions, version)
		}
	}
	return list
}

func (a *API) resources(of schema.GroupVersion) any {
	list := metav1.APIResourceList{TypeMeta: metav1.TypeMeta{Kind: "APIResourceList", APIVersion: "v1"}, GroupVersion: of.String()}
	verbs := metav1.Verbs{"create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"}
	for _, k := range a.kinds {
		if k.Group != of.Group || k.Version != of.Version {
			continue
		}
		list.APIResources = append(list.APIResources, metav1.APIResource{Name: k.Resource, Kind: k.Kind, Namespaced: k.Namespaced, Verbs: verbs})
		if k.Status {
			list.APIResources = append(list.APIResources, metav1.APIResource{Name: k.Resource + "/status", Kind: k.Kind, Namespaced: k.Namespaced, Verbs: metav1.Verbs{"get", "patch", "update"}})
		}
	}
	if len(list.APIResources) == 0 {
		return nil
	}
	return list
}
